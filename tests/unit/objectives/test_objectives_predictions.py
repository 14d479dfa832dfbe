"""What each head predicts token by token, and that asking leaves no trace."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from objective_reference import Reference, slow_sums
from objective_toys import LENGTHS, SIZE, as_batch, make_documents, tiny_config, tiny_objective
from retromae_reference import slow_retromae
from span_corruption_reference import Seq2Seq, slow_noise, slow_span_corruption

from train.objectives.objective import UNSEEN

EPOCH = 3
RATIOS = {"mask_ratio": 0.3, "mask_token_share": 0.5, "random_token_share": 0.3, "drop_ratio": 0.4}
CASES = [
    ("mlm", {}, slow_sums),
    ("mlm", {"boundary_weight": 0.5, "mask_unit": "span"}, slow_sums),
    ("mae", {}, slow_sums),
    ("latent-mae", {}, slow_sums),
    ("latent-mae", {"reconstruct": "all"}, slow_sums),
    ("joint", {"mask_unit": "word"}, slow_sums),
    ("retromae", {}, slow_retromae),
    ("dupmae", {}, slow_retromae),  # its third head predicts no tokens
    ("span-corruption", {}, slow_span_corruption),
]


def named(value: object) -> str:
    """The name of a case: a function's text holds its address, which differs from worker to worker."""
    return value.__name__ if callable(value) else str(value).replace("'", "")


@pytest.mark.parametrize(("name", "variant", "definition"), CASES, ids=named)
def test_predictions_are_the_largest_logits_of_the_definition(name: str, variant: dict, definition: Callable) -> None:
    """Reference: the argmax of all logits of one document and one place at a time, and the token that stands there."""
    config = tiny_config(name, **(RATIOS | variant))
    objective, documents = tiny_objective(config), make_documents(LENGTHS)
    reference = Reference(objective, config, "sdpa", None)
    if name == "span-corruption":
        reference = Seq2Seq(reference, objective.sentinels)
    with torch.no_grad():
        totals = definition(reference, documents, EPOCH)
    batch = as_batch(documents, EPOCH)
    selection = objective.select(batch)
    guessed, asked = objective.predictions(batch, selection), objective.asked(batch, selection)
    assert [guesses_N.tolist() for guesses_N in guessed] == [total.guesses for total in totals]
    assert len(asked) == len(guessed) and sum(len(guesses_N) for guesses_N in guessed) > 20
    for one, total in zip(asked, totals, strict=True):
        pairs = zip(one.places_N.tolist(), total.truths, strict=True)
        if name == "span-corruption":  # sentinels and the end stand nowhere in the text
            pairs = [(place, truth) for place, truth in pairs if place >= 0]
            assert all(truth < SIZE for _, truth in pairs)
            assert len(pairs) == int((one.shown_T == UNSEEN).sum()) > 0
        assert all(batch.ids_T[place] == truth for place, truth in pairs)


@pytest.mark.parametrize("name", ["mlm", "mae", "latent-mae", "joint", "retromae", "dupmae", "span-corruption"])
def test_asking_changes_nothing(name: str) -> None:
    """Reference: sums, gradients and random state of an objective that was not asked."""
    found = []
    for asks in (False, True):
        objective, batch = tiny_objective(tiny_config(name, **RATIOS)), as_batch(make_documents(LENGTHS), EPOCH)
        torch.manual_seed(1)
        selection = objective.select(batch)
        if asks:
            objective.predictions(batch, selection)
        losses_H, hits_H2 = objective(batch, selection)
        losses_H.sum().backward()
        gradients = [parameter.grad for parameter in objective.parameters() if parameter.grad is not None]
        found.append([losses_H, hits_H2, torch.random.get_rng_state(), *gradients])
    assert len(found[0]) == len(found[1]) > 4
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("name", ["mae", "joint", "latent-mae", "span-corruption"])
def test_what_is_shown_is_what_is_kept(name: str) -> None:
    """Reference: the ids that the encoder is called with; for latents, those at the places of no target."""
    objective, documents = tiny_objective(tiny_config(name, **RATIOS)), make_documents(LENGTHS)
    batch = as_batch(documents, EPOCH)
    calls = []
    objective.encoder.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0]))
    selection = objective.select(batch)
    objective.predictions(batch, selection)
    shown_T = objective.asked(batch, selection)[-1].shown_T
    [seen] = calls
    if name == "latent-mae":
        places_N = objective.asked(batch, selection)[0].places_N
        assert torch.equal(seen, batch.ids_T) and torch.equal(places_N, torch.nonzero(shown_T == UNSEEN)[:, 0])
    else:
        assert shown_T[shown_T != UNSEEN].tolist() == [i for i in seen.tolist() if i < SIZE]


def test_the_noise_of_span_corruption_is_not_shown() -> None:
    """Reference: the slow spans of each document."""
    config = tiny_config("span-corruption", **RATIOS)
    objective, documents = tiny_objective(config), make_documents(LENGTHS)
    batch = as_batch(documents, EPOCH)
    [asked] = objective.asked(batch, objective.select(batch))
    settings = config.objective
    for document, (start, end) in zip(documents, pairwise(batch.cu_seqlens_D1.tolist()), strict=True):
        noise = slow_noise(document, config.run.seed, EPOCH, settings.mask_ratio, settings.mean_span_length)
        hidden = {place for begin, stop in noise for place in range(begin, stop)}
        assert {i for i, token in enumerate(asked.shown_T[start:end].tolist()) if token == UNSEEN} == hidden
