"""Which tokens are chosen and what becomes of them: exact counts, uniform, and a function of the token alone."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from objective_reference import DROP, SELECT, Draws, slow_count
from objective_toys import (
    FIRST_ORDINARY,
    LENGTHS,
    MASK,
    SEED,
    SIZE,
    Document,
    as_batch,
    make_documents,
    seen_by_encoder,
    tiny_config,
    tiny_objective,
)

from train.model.documents import Documents
from train.objectives import masking
from train.objectives.mae import Split
from train.objectives.masking import Chance, corrupt, exact_counts, ordinary
from train.objectives.units import UnitDraws, choose

CPU = torch.device("cpu")


def masked_places(documents: Sequence[Document], epoch: int = 3, ratio: float = 0.3) -> list[list[int]]:
    """Per document, where the encoder of masked language modelling meets [MASK] when all targets become it."""
    settings = {"mask_ratio": ratio, "mask_token_share": 1.0, "random_token_share": 0.0}
    objective = tiny_objective(tiny_config("mlm", **settings))
    seen = seen_by_encoder(objective, documents, epoch)
    return [[place for place, token in enumerate(piece.ids) if token == MASK] for piece in seen]


def dropped_places(documents: Sequence[Document], epoch: int = 3, ratio: float = 0.4) -> list[list[int]]:
    """Per document, the places that the encoder of masked autoencoding is not given."""
    seen = seen_by_encoder(tiny_objective(tiny_config("mae", drop_ratio=ratio)), documents, epoch)
    return [
        [place for place in range(len(document.ids)) if place not in piece.positions]
        for document, piece in zip(documents, seen, strict=True)
    ]


CHOSEN = pytest.mark.parametrize("chosen", [masked_places, dropped_places], ids=["masked", "dropped"])


@pytest.mark.parametrize("ratio", [0.001, 0.05, 0.15, 0.3, 0.5, 0.75, 0.999])
def test_counts_are_the_rounded_share_and_at_least_one(ratio: float) -> None:
    """Reference: max(1, round(share)) in Python, clipped to what there is."""
    expected = [slow_count(candidates, ratio) for candidates in range(2000)]
    assert exact_counts(torch.arange(2000), ratio).tolist() == expected
    assert expected[:2] == [0, 1]


@pytest.mark.parametrize("ratio", [0.15, 0.5, 0.9])
@CHOSEN
def test_every_document_has_its_exact_count_and_keeps_its_specials(chosen, ratio: float) -> None:
    """Reference: the slow count; [CLS] is the first place of a document, [SEP] the last."""
    documents = make_documents([*LENGTHS, *range(2, 40)])
    for document, places in zip(documents, chosen(documents, ratio=ratio), strict=True):
        last = len(document.ids) - 1
        assert len(places) == slow_count(last - 1, ratio)
        assert all(0 < place < last for place in places)


def test_the_choice_is_the_smallest_words_of_each_document() -> None:
    """Reference: sorting each document's candidates by the random words in Python's unbounded integers."""
    documents = make_documents(LENGTHS)
    masked, dropped = masked_places(documents), dropped_places(documents)
    for number, document in enumerate(documents):
        draws, candidates = Draws(document, SEED, 3), range(1, len(document.ids) - 1)
        assert masked[number] == draws.choose(SELECT, candidates, 0.3).places
        assert dropped[number] == draws.choose(DROP, candidates, 0.4).places


@CHOSEN
def test_the_choice_does_not_depend_on_the_micro_batch(chosen) -> None:
    """Reference: each document alone. Together, reversed and in other groups the same places are chosen."""
    documents = make_documents(LENGTHS)
    alone = [chosen([document])[0] for document in documents]
    assert chosen(documents) == alone
    assert chosen(documents[::-1]) == alone[::-1]
    assert chosen(documents[:3]) + chosen(documents[3:]) == alone


@CHOSEN
def test_the_choice_depends_on_row_offset_epoch_and_seed_but_not_on_the_text(chosen) -> None:
    """Reference: a document of 40 tokens; two choices of 11 and more places agree by chance once in 10^9."""
    [document] = make_documents([40])
    usual = chosen([document])
    assert chosen([document._replace(ids=[2, *range(9, 47), 3])]) == usual
    assert chosen([document._replace(row=document.row + 1)]) != usual
    assert chosen([document._replace(offset=document.offset + 40)]) != usual
    choices = [chosen([document], epoch)[0] for epoch in range(-1, 20)]
    assert len({tuple(places) for places in choices}) == len(choices)


def _choices(length: int, count: int, trials: int) -> torch.Tensor:
    """Places [trials, count] chosen in as many documents of one length, a row each."""
    documents = Documents.of(np.full(trials, length), CPU)
    batch = as_batch([Document([0] * length, row, 0) for row in range(trials)])
    order_T = Chance(5).words(SELECT, batch, documents)
    draws, most_D = UnitDraws(order_T, order_T), torch.full((trials,), count)
    chosen = choose("token", tiny_config().objective, draws, documents, ordinary(documents), None, most_D)
    return chosen.places_N.view(trials, count) - length * torch.arange(trials)[:, None]


@pytest.mark.parametrize(("length", "count"), [(34, 5), (34, 16), (12, 9)])
def test_every_place_is_chosen_equally_often(length: int, count: int) -> None:
    """Reference: the chi-square distribution, corrected for drawing without replacement; five deviations."""
    trials, places = 4000, length - 2
    counts = torch.bincount(_choices(length, count, trials).flatten() - 1, minlength=places).double()
    share = count / places
    statistic = float(((counts - trials * share) ** 2).sum()) / (trials * share * (1 - share)) * (places - 1) / places
    assert abs(statistic - (places - 1)) < 5 * (2 * (places - 1)) ** 0.5


def test_every_subset_is_chosen_equally_often() -> None:
    """Reference: the chi-square distribution over the 20 subsets of 3 places out of 6."""
    trials = 4000
    found = [tuple(places) for places in (_choices(8, 3, trials) - 1).tolist()]
    subsets = list(itertools.combinations(range(6), 3))
    statistic = sum((found.count(subset) - trials / 20) ** 2 / (trials / 20) for subset in subsets)
    assert set(found) == set(subsets)
    assert abs(statistic - 19) < 5 * (2 * 19) ** 0.5


def test_places_are_where_a_flag_is_true() -> None:
    """Reference: a list of Python, for no, some and all places."""
    rng = np.random.default_rng(0)
    for tokens, count in [(1, 0), (1, 1), (50, 0), (50, 17), (50, 50)]:
        flags = np.zeros(tokens, bool)
        flags[rng.choice(tokens, count, replace=False)] = True
        expected = [place for place, flag in enumerate(flags.tolist()) if flag]
        assert masking.places(torch.from_numpy(flags), count).tolist() == expected


def test_chosen_and_kept_places_are_those_of_every_document() -> None:
    """Reference: the places of the batch counted one document after another; kept and dropped make a whole."""
    objective = tiny_objective(tiny_config("mae", drop_ratio=0.4))
    documents = make_documents(LENGTHS)
    selection = objective.select(as_batch(documents))
    split = Split.of(selection.documents, selection.chosen)
    expected, start = [], 0
    for document, places in zip(documents, dropped_places(documents), strict=True):
        expected += [start + place for place in places]
        start += len(document.ids)
    assert split.dropped_N.tolist() == expected
    assert sorted(split.kept_K.tolist() + expected) == list(range(start))
    assert split.kept_K.tolist() == sorted(split.kept_K.tolist())


def test_nothing_is_both_dropped_and_masked_in_the_joint_objective() -> None:
    """Reference: the documents themselves; the encoder's [MASK]s stand at kept places, in their exact number."""
    settings = {"mask_ratio": 0.3, "drop_ratio": 0.4, "mask_token_share": 1.0, "random_token_share": 0.0}
    documents = make_documents([*LENGTHS, *range(2, 40)])
    seen = seen_by_encoder(tiny_objective(tiny_config("joint", **settings)), documents)
    dropped = dropped_places(documents, ratio=0.4)
    for document, piece, gone in zip(documents, seen, dropped, strict=True):
        assert sorted(piece.positions + gone) == list(range(len(document.ids)))
        assert piece.ids.count(MASK) == slow_count(len(piece.ids) - 2, 0.3)
        assert (piece.ids[0], piece.ids[-1]) == (document.ids[0], document.ids[-1])


# ---------------------------------------------------------------------------------------------------------------------
# What becomes of the chosen tokens


def _fates(mask_token_share: float, random_token_share: float, tokens: int = 100_000) -> tuple[int, int, torch.Tensor]:
    """How many targets became [MASK], how many stayed, and the ids of the rest; the truth is an id below all others."""
    settings = tiny_config(mask_token_share=mask_token_share, random_token_share=random_token_share).objective
    chance, truth_N = Chance(9), torch.full((tokens,), FIRST_ORDINARY - 1)
    documents = Documents.of(np.array([tokens]), CPU)
    batch = as_batch([Document(truth_N.tolist(), 4, 0)])
    fate_N, replacement_N = (chance.words(s, batch, documents) for s in (masking.FATE, masking.REPLACEMENT))
    seen_N = corrupt(truth_N, fate_N, replacement_N, settings, MASK, torch.arange(FIRST_ORDINARY, SIZE))
    changed = seen_N[(seen_N != MASK) & (seen_N != truth_N)]
    return int((seen_N == MASK).sum()), int((seen_N == truth_N).sum()), changed


@pytest.mark.parametrize(("masked", "random"), [(0.8, 0.1), (0.5, 0.3), (0.1, 0.9), (0.0, 0.2)])
def test_targets_become_mask_random_or_stay_in_the_configured_shares(masked: float, random: float) -> None:
    """Reference: the binomial distribution, five standard deviations."""
    tokens = 100_000
    masks, same, changed = _fates(masked, random, tokens)
    for count, share in [(masks, masked), (len(changed), random), (same, 1 - masked - random)]:
        assert abs(count - tokens * share) <= 5 * (tokens * max(0, share * (1 - share))) ** 0.5


def test_shares_of_one_and_zero_have_no_exception() -> None:
    """Reference: all 100,000 targets have the one fate that the shares leave."""
    masks, same, changed = _fates(1.0, 0.0)
    assert (masks, same, len(changed)) == (100_000, 0, 0)
    masks, same, changed = _fates(0.0, 0.0)
    assert (masks, same, len(changed)) == (0, 100_000, 0)
    masks, same, changed = _fates(0.0, 1.0)
    assert (masks, same, len(changed)) == (0, 0, 100_000)


def test_random_ids_are_all_the_ordinary_ids_equally_often_and_no_others() -> None:
    """Reference: the vocabulary's ordinary ids and the chi-square distribution; five standard deviations."""
    _, _, changed = _fates(0.0, 1.0)
    counts = torch.bincount(changed, minlength=SIZE)
    assert counts[:FIRST_ORDINARY].sum() == 0
    size = SIZE - FIRST_ORDINARY
    statistic = float(((counts[FIRST_ORDINARY:] - 100_000 / size) ** 2 / (100_000 / size)).sum())
    assert abs(statistic - (size - 1)) < 5 * (2 * (size - 1)) ** 0.5


@pytest.mark.parametrize("name", ["mlm", "joint"])
def test_the_encoder_meets_no_special_but_mask_and_nothing_changes_outside_the_targets(name: str) -> None:
    """Reference: the documents themselves; of the tokens the encoder is given, the exact count may differ."""
    settings = {"mask_ratio": 0.3, "drop_ratio": 0.4, "mask_token_share": 0.2, "random_token_share": 0.8}
    documents = make_documents([*LENGTHS, *range(2, 40)])
    for document, piece in zip(
        documents, seen_by_encoder(tiny_objective(tiny_config(name, **settings)), documents), strict=True
    ):
        truth = [document.ids[place] for place in piece.positions]
        differing = [token for token, true in zip(piece.ids, truth, strict=True) if token != true]
        assert len(differing) <= slow_count(len(truth) - 2, 0.3)
        assert all(token == MASK or token >= FIRST_ORDINARY for token in differing)


def test_masked_autoencoding_shows_the_encoder_unchanged_tokens_at_their_original_positions() -> None:
    """Reference: the documents themselves."""
    documents = make_documents(LENGTHS)
    for document, piece in zip(documents, seen_by_encoder(tiny_objective(tiny_config("mae")), documents), strict=True):
        assert piece.ids == [document.ids[place] for place in piece.positions]
        assert piece.positions == sorted(piece.positions)
