"""Span corruption equals its definition; spans are uniform; the decoder sees neither the future nor a neighbour."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from objective_checks import (
    EPOCH,
    assert_a_neighbours_tokens_change_nothing,
    assert_equals_definition,
    assert_fillers_give_nothing,
    assert_micro_batches_add_up,
    assert_nothing_is_read_from_the_device,
    assert_recomputing_changes_no_bit,
)
from objective_reference import Reference
from objective_toys import (
    CLS,
    LENGTHS,
    SEED,
    SEP,
    SIZE,
    Document,
    as_batch,
    make_documents,
    tiny_config,
    tiny_objective,
)
from span_corruption_reference import Seq2Seq, slow_counts, slow_noise, slow_span_corruption, slow_texts

from train.config import Config
from train.model.cross_decoder import CrossDecoder
from train.model.documents import Documents
from train.objectives.span_corruption import most_spans, sequences, span_counts

SHORT = (17, 2, 9, 3, 21, 4)
SETTINGS = [
    {"mask_ratio": 0.3, "mean_span_length": 2.0},
    {"mask_ratio": 0.5, "mean_span_length": 1.0},
    {"mask_ratio": 0.8},
]


def config_of(settings: dict, model: dict | None = None, dropout: float = 0.0) -> Config:
    return tiny_config("span-corruption", model, dropout, **settings)


@pytest.mark.parametrize("settings", SETTINGS)
def test_span_corruption_equals_its_definition(settings: dict) -> None:
    """Reference: one document, one query and one head at a time; loss, hits and all gradients.

    The head of masked language modelling is not used: its output projection is, through the tied embedding.
    """
    assert_equals_definition(config_of(settings), LENGTHS, slow_span_corruption, least_hits=3, reference_of=seq2seq)


def seq2seq(objective: torch.nn.Module, config: Config) -> Reference:
    class WithSentinels(Seq2Seq):
        def gradients(self) -> dict[str, torch.Tensor]:
            return super().gradients() | {"sentinels": self.sentinels.grad}

    return WithSentinels(Reference(objective, config, "sdpa", None), objective.sentinels)


@pytest.mark.parametrize("ratio", [0.05, 0.15, 0.5, 0.9])
@pytest.mark.parametrize("mean", [1.0, 3.0, 7.5])
def test_counts_are_those_of_t5_and_the_sentinels_suffice(ratio: float, mean: float) -> None:
    """Reference: the slow counts, for every length up to a row's."""
    ordinary_D = np.arange(0, 511)
    noise_D, spans_D = span_counts(ordinary_D, ratio, mean)
    expected = [slow_counts(ordinary, ratio, mean) for ordinary in range(511)]
    assert list(zip(noise_D.tolist(), spans_D.tolist(), strict=True)) == expected
    values = {"data": {"path": "nowhere", "sequence_length": 512}}
    values["objective"] = {"name": "span-corruption", "mask_ratio": ratio, "mean_span_length": mean}
    most = most_spans(Config.model_validate(values))
    assert max(spans for _, spans in expected) <= most <= max(1, 255)
    assert most == max(spans for _, spans in expected) or ratio == 0.9


def test_568_tokens_become_512_and_114() -> None:
    """Reference: random_spans_helper of T5: 512 tokens with their end go in, 114 come out: 85 noise, 28 sentinels, end.

    [CLS] stands before what T5's encoder would read.
    """
    document = Document([CLS, *([11] * 568), SEP], 1000, 0)
    values = config_of({"mask_ratio": 0.15, "mean_span_length": 3.0}).model_dump()
    values["data"]["sequence_length"] = values["model"]["encoder"]["max_position_embeddings"] = 570
    objective, batch = tiny_objective(Config.model_validate(values)), as_batch([document])
    selection = objective.select(batch)
    text = sequences(batch.ids_T, selection, SIZE)
    assert (selection.noise_D.tolist(), selection.spans_D.tolist()) == ([85], [28])
    assert objective.target_counts(selection).tolist() == [114] == text.target_documents.lengths_D.tolist()
    assert text.seen_documents.lengths_D.tolist() == [1 + 512] and len(text.seen_E) == 513
    assert int((text.seen_E >= SIZE).sum()) == int((text.target_U >= SIZE).sum()) == 28 == len(objective.sentinels)


@pytest.mark.parametrize("settings", SETTINGS)
def test_texts_are_the_slow_ones_in_any_batch(settings: dict) -> None:
    """Reference: Python's lists, one span at a time; alone, among others, in another order."""
    objective, documents = tiny_objective(config_of(settings)), make_documents(LENGTHS)
    ratio, mean = objective.settings.mask_ratio, objective.settings.mean_span_length
    for chosen in (documents, documents[::-1], *([document] for document in documents)):
        batch = as_batch(chosen, EPOCH)
        selection = objective.select(batch)
        text = sequences(batch.ids_T, selection, SIZE)
        seen = [piece.tolist() for piece in text.seen_E.split(text.seen_documents.lengths_D.tolist())]
        lengths = text.target_documents.lengths_D.tolist()
        inputs, written = ([piece.tolist() for piece in x.split(lengths)] for x in (text.input_U, text.target_U))
        assert selection.targets_D.sum() == objective.target_counts(selection)[0]
        for number, document in enumerate(chosen):
            noise = slow_noise(document, SEED, EPOCH, ratio, mean)
            assert (seen[number], written[number]) == slow_texts(document.ids, noise)
            assert inputs[number] == [CLS, *written[number][:-1]]
            assert selection.targets_D[number] == (len(written[number]) if noise else 0)


def test_every_way_to_cut_noise_and_text_is_equally_likely_and_independent() -> None:
    """Reference: chi-square over all pairs of compositions, 99.99 %; 9 tokens, 4 of them noise, 2 spans: 3 * 4."""
    config = config_of({"mask_ratio": 0.45, "mean_span_length": 2.0})
    documents = [Document([CLS, *([11] * 9), SEP], row, 0) for row in range(12_000)]
    noise_T = tiny_objective(config).select(as_batch(documents)).noise_T
    found = Counter(tuple(row) for row in noise_T.view(-1, 11).int().tolist())
    every = {
        (0, *[0] * a, *[1] * b, *[0] * (5 - a), *[1] * (4 - b), 0)
        for (a,), (b,) in ((x, y) for x in combinations(range(1, 5), 1) for y in combinations(range(1, 4), 1))
    }
    assert set(found) == every and len(every) == 12
    chi_square = sum((found[layout] - 1000) ** 2 / 1000 for layout in every)
    assert chi_square < 37.4  # of 11 degrees of freedom


def test_several_cuts_are_uniform_too() -> None:
    """Reference: chi-square over the 10 ways to cut 6 tokens of noise into 3 parts, 99.99 %."""
    config = config_of({"mask_ratio": 0.5, "mean_span_length": 2.0})
    documents = [Document([CLS, *([11] * 12), SEP], row, 0) for row in range(10_000)]
    first_T = tiny_objective(config).select(as_batch(documents)).first_T
    noise_T = tiny_objective(config).select(as_batch(documents)).noise_T
    layouts = Counter()
    for noise, first in zip(noise_T.view(-1, 14), first_T.view(-1, 14), strict=True):
        begins = np.flatnonzero(first[noise])
        layouts[tuple(begins.tolist())] += 1
    assert len(layouts) == 10 and all(len(begins) == 3 for begins in layouts)
    assert sum((count - 1000) ** 2 / 1000 for count in layouts.values()) < 33.7  # of 9 degrees of freedom


def test_the_decoder_does_not_see_what_it_is_to_write() -> None:
    """Reference: the same decoder, bit for bit, before later inputs and other documents' states changed."""
    torch.manual_seed(0)
    config = config_of({})
    decoder = CrossDecoder(config.model, SIZE)
    bounds = [Documents.of(np.array(lengths), torch.device("cpu")) for lengths in ((5, 1, 7), (3, 6, 2))]
    inputs_UE, states_TE = torch.randn(13, 24), torch.randn(11, 24)
    with torch.no_grad():
        before_UD = decoder(inputs_UE, bounds[0], states_TE, bounds[1])
        changed_UE, changed_TE = inputs_UE.clone(), states_TE.clone()
        changed_UE[9:] += 1  # of the third document all but three tokens
        changed_TE[:9] += 1  # the states of the first two documents
        after_UD = decoder(changed_UE, bounds[0], changed_TE, bounds[1])
    assert torch.equal(after_UD[6:9], before_UD[6:9])
    changed_U = (after_UD != before_UD).any(-1)
    assert changed_U.tolist() == [True] * 6 + [False] * 3 + [True] * 4


def test_documents_do_not_touch_one_another() -> None:
    """Reference: the same document alone and among documents of other tokens, in fp64."""
    assert_a_neighbours_tokens_change_nothing(config_of(SETTINGS[0]), SHORT)


def test_micro_batches_and_fillers_change_nothing() -> None:
    """Reference: the batch in one piece, in fp64."""
    assert_micro_batches_add_up(config_of(SETTINGS[0]), LENGTHS)


def test_a_batch_without_targets_has_no_loss_and_no_gradient() -> None:
    """Reference: 0 everywhere, and never NaN."""
    assert_fillers_give_nothing(config_of({}))


def test_recomputing_activations_changes_no_bit() -> None:
    """Reference: the same seed with activations stored, dropout included."""
    assert_recomputing_changes_no_bit(config_of(SETTINGS[0], dropout=0.1), LENGTHS, "cross_norm", layers=2)


def test_nothing_is_read_from_the_device() -> None:
    """Reference: the operators that would read a value or make a shape of values; a GPU must not wait for the host."""
    assert_nothing_is_read_from_the_device(config_of(SETTINGS[0]), LENGTHS)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "eurobert"])
def test_every_family_of_encoders_takes_sentinels(family: str) -> None:
    """Reference: a gradient for all but the head of masked language modelling, and for sentinels in use."""
    encoder = {"model_type": family, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    encoder |= {"intermediate_size": 40, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}
    objective = tiny_objective(config_of(SETTINGS[0], {"encoder": encoder, "gradient_checkpointing": False}))
    batch = as_batch(make_documents(LENGTHS))
    losses_H, _ = objective(batch, objective.select(batch))
    losses_H.sum().backward()
    assert objective.sentinels.grad.any(-1).sum() == span_counts(np.array([38]), 0.3, 2.0)[1][0]
    trained = *objective.encoder.masked_lm.base_model.parameters(), *objective.decoder.parameters()
    assert all(parameter.grad is not None for parameter in trained)
