"""Words and spans are chosen whole, in their exact number, and with the distribution that the papers give them."""

from collections import Counter

import numpy as np
import pytest
import torch
from objective_reference import slow_count
from objective_toys import (
    CLS,
    LENGTHS,
    MASK,
    SEP,
    Document,
    as_batch,
    make_documents,
    seen_by_encoder,
    tiny_config,
    tiny_objective,
)

from train.config import mask_ratio
from train.model.documents import Documents
from train.objectives.masking import SELECT, SELECT_LENGTH, Chance, exact_counts, ordinary
from train.objectives.units import Chosen, UnitDraws, choose, span_lengths

UNITS = pytest.mark.parametrize("unit", ["word", "span"])
SCHEDULE = {"mask_ratio": 0.3, "mask_ratio_at": [{"step": 100, "ratio": 0.15}, {"step": 200, "ratio": 0.05}]}


def documents_of_words(words: int, documents: int, sizes: tuple[int, ...], seed: int = 0) -> list[Document]:
    """Documents of words with so many tokens each, drawn from `sizes`; a row each."""
    rng, found = np.random.default_rng(seed), []
    for row in range(documents):
        lengths = rng.choice(sizes, words).tolist()
        starts = [True, *(place == 0 for length in lengths for place in range(length)), True]
        found.append(Document([CLS, *[9] * sum(lengths), SEP], row, 0, starts))
    return found


def chosen(unit: str, documents: list[Document], ratio: float, seed: int = 5) -> tuple[Chosen, Documents]:
    batch = as_batch(documents)
    bounds = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
    draws = UnitDraws(*(Chance(seed).words(stream, batch, bounds) for stream in (SELECT, SELECT_LENGTH)))
    among_T = ordinary(bounds)
    most_D = exact_counts(bounds.sums(among_T), ratio)
    settings = tiny_config(mask_unit=unit).objective
    return choose(unit, settings, draws, bounds, among_T, batch.word_starts_T, most_D), bounds


@UNITS
@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.3, 0.7])
def test_words_are_chosen_whole_and_never_more_than_the_count(unit: str, ratio: float) -> None:
    """Reference: the words of each document, of one to nine tokens as in Chinese; what is missing fits no word left."""
    documents = documents_of_words(60, 50, (1, 1, 1, 2, 2, 4, 5, 9))
    found, bounds = chosen(unit, documents, ratio)
    for document, flags in zip(documents, found.flags_T.split(bounds.lengths_D.tolist()), strict=True):
        words = np.cumsum(document.starts)
        sizes, taken = Counter(words.tolist()), Counter(words[flags.numpy()].tolist())
        assert all(sizes[word] == count for word, count in taken.items())
        room = slow_count(len(document.ids) - 2, ratio) - int(flags.sum())
        left = [size for word, size in sizes.items() if word not in taken and word not in (words[0], words[-1])]
        assert room == 0 or min(left) > room
        assert not flags[0] and not flags[-1]
    assert any(size >= 4 for size in sizes.values())
    assert found.counts_D.tolist() == [int(part.sum()) for part in found.flags_T.split(bounds.lengths_D.tolist())]


@UNITS
def test_a_word_without_room_leaves_the_document_without_targets(unit: str) -> None:
    """Reference: BERT's create_pretraining_data.py, which passes over a word that exceeds the count."""
    found, _ = chosen(unit, documents_of_words(1, 3, (6,)), 0.15)
    assert found.counts_D.tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["mlm", "mae", "joint"])
@UNITS
def test_words_and_spans_do_not_depend_on_the_micro_batch(name: str, unit: str) -> None:
    """Reference: each document alone. Together, reversed and in other groups the encoder is given the same."""
    settings = {"mask_ratio": 0.3, "drop_ratio": 0.4, "mask_token_share": 0.5, "random_token_share": 0.4}
    objective = tiny_objective(tiny_config(name, mask_unit=unit, drop_unit=unit, **settings))
    documents = make_documents(LENGTHS)
    alone = [seen_by_encoder(objective, [document])[0] for document in documents]
    assert seen_by_encoder(objective, documents) == alone
    assert seen_by_encoder(objective, documents[::-1]) == alone[::-1]
    assert seen_by_encoder(objective, documents[:3]) + seen_by_encoder(objective, documents[3:]) == alone


def test_every_word_is_chosen_equally_often() -> None:
    """Reference: the chi-square distribution for words of two tokens each, corrected as for drawing without
    replacement; five deviations."""
    trials, words, count = 4000, 20, 6
    found, _ = chosen("word", documents_of_words(words, trials, (2,)), count / words)
    counts = found.flags_T.view(trials, 2 + 2 * words)[:, 1:-1:2].sum(0).double()
    share = count / words
    statistic = float(((counts - trials * share) ** 2).sum()) / (trials * share * (1 - share)) * (words - 1) / words
    assert abs(statistic - (words - 1)) < 5 * (2 * (words - 1)) ** 0.5


@pytest.mark.parametrize(("probability", "longest", "mean"), [(0.2, 10, 3.797), (0.3, 10, 3.041), (0.2, 1, 1.0)])
def test_span_lengths_are_geometric_up_to_the_longest(probability: float, longest: int, mean: float) -> None:
    """Reference: the probabilities written out and renormalised; 3.8 words is what Joshi et al. state for 0.2."""
    trials = 200_000
    word_W = Chance(1).words(
        SELECT, batch := as_batch([Document([0] * trials, 1, 0)]), Documents.of(batch.lengths_D, torch.device("cpu"))
    )
    counts = torch.bincount(span_lengths(word_W, probability, longest), minlength=longest + 1)[1:].double()
    shares = torch.tensor([(1 - probability) ** k for k in range(longest)], dtype=torch.float64)
    expected = trials * shares / shares.sum()
    assert float((counts * torch.arange(1, longest + 1)).sum()) / trials == pytest.approx(mean, abs=0.03)
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic <= max(1e-9, longest - 1 + 5 * (2 * (longest - 1)) ** 0.5)


def test_targets_of_the_unit_span_stand_together_and_words_apart() -> None:
    """Reference: runs of chosen words at 15 %: by chance 1.18 words; spans of 3.8 give more than twice as many."""
    means = {}
    for unit in ("word", "span"):
        found, _ = chosen(unit, documents_of_words(200, 100, (1,)), 0.15)
        flags = found.flags_T.numpy()
        runs = np.count_nonzero(flags[1:] & ~flags[:-1])
        means[unit] = flags.sum() / runs
    assert means["word"] == pytest.approx(1 / 0.85, rel=0.05)
    assert 2.8 < means["span"] < 4.2


def test_a_span_has_one_fate() -> None:
    """Reference: the span that covers a token first decides; [MASK] or truth, never both in one span of an untouched
    draw (Joshi et al. 2020, section 3.1: 80/10/10 at the level of spans)."""
    documents = documents_of_words(40, 40, (1, 2, 5))
    settings = {"mask_unit": "span", "mask_ratio": 0.15, "mask_token_share": 0.5, "random_token_share": 0.0}
    objective = tiny_objective(tiny_config("mlm", **settings))
    batch = as_batch(documents)
    selection = objective.select(batch)
    drawn_T, flags_T = selection.targets.drawn_T, selection.targets.flags_T
    masked = {}
    for place in torch.nonzero(flags_T)[:, 0].tolist():
        masked.setdefault(int(drawn_T[place]), set()).add(int(selection.seen_T[place]) == MASK)
    assert len(masked) > 100
    assert all(len(fates) == 1 for fates in masked.values())
    share = np.mean([fates == {True} for fates in masked.values()])
    assert abs(share - 0.5) < 5 * (0.25 / len(masked)) ** 0.5


@pytest.mark.parametrize(
    ("between", "expected"),
    [("hold", {0: 0.3, 99: 0.3, 100: 0.15, 199: 0.15, 200: 0.05, 10**6: 0.05, None: 0.3}),
     ("linear", {0: 0.3, 50: 0.225, 100: 0.15, 150: 0.1, 200: 0.05, 10**6: 0.05, None: 0.3})],
)  # fmt: skip
def test_the_mask_ratio_follows_its_schedule_and_validation_stays(between: str, expected: dict) -> None:
    """Reference: the points by hand, and the number of targets that the objective really has at a step."""
    config = tiny_config("mlm", mask_ratio_between=between, **SCHEDULE)
    documents = make_documents([40] * 5)
    objective = tiny_objective(config)
    for step, ratio in expected.items():
        assert mask_ratio(config.objective, step) == pytest.approx(ratio)
        [count] = objective.target_counts(objective.select(as_batch(documents), step))
        assert count == 5 * slow_count(38, ratio)
