"""DupMAE equals its definition: RetroMAE, and the set of a document's tokens from the pooled logits."""

from collections.abc import Sequence

import pytest
import torch
from objective_checks import (
    assert_a_neighbours_tokens_change_nothing,
    assert_equals_definition,
    assert_fillers_give_nothing,
    assert_micro_batches_add_up,
    assert_nothing_is_read_from_the_device,
    assert_recomputing_changes_no_bit,
    learn,
    sums_and_gradients,
)
from objective_reference import Draws, HeadTotals, Reference, _masked_heads
from objective_toys import LENGTHS, SIZE, VOCABULARY, Document, as_batch, make_documents, tiny_config, tiny_objective
from retromae_reference import slow_retromae

from train.objectives import build_objective

SETTINGS = {"mask_unit": "word", "mask_ratio": 0.3}


def slow_dupmae(reference: Reference, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """The sums of RetroMAE, then of the bags of words, one entry of the vocabulary at a time."""
    totals = [*slow_retromae(reference, documents, epoch), HeadTotals(torch.zeros(()))]
    for document in documents:
        present = set(document.ids[1:-1])
        if not present:
            continue
        draws = Draws(document, reference.config.run.seed, epoch)
        places = list(range(len(document.ids)))
        states, _ = _masked_heads(reference, draws, places, HeadTotals(torch.zeros(())))
        logits = [reference.lm.cls(state) for state in states[1:-1]]
        pooled = torch.stack([max(row[entry] for row in logits) for entry in range(SIZE)])
        losses = [-pooled.log_softmax(-1)[token] for token in present]
        totals[2].loss = totals[2].loss + sum(losses) / len(losses)
        totals[2].hits += int(pooled.argmax()) in present
        totals[2].frequent += VOCABULARY.most_frequent_id in present
    return totals


@pytest.mark.parametrize("settings", [SETTINGS, {"decoder_query": "embeddings"}])
def test_dupmae_equals_its_definition(settings: dict) -> None:
    """Reference: one document, one entry of the vocabulary at a time; losses, hits and all gradients."""
    assert_equals_definition(tiny_config("dupmae", **settings), LENGTHS, slow_dupmae, least_hits=1)


def test_chunks_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the same batch with the logits of every bucket in one piece; chunks down to single positions."""
    objective, documents = tiny_objective(tiny_config("dupmae", **SETTINGS)).double(), make_documents(LENGTHS)
    learn(objective, documents, steps=3)
    (whole_H, whole_H2), whole = sums_and_gradients(objective, [documents])
    for logits in (1, SIZE * 7, SIZE * 16 * 3):
        monkeypatch.setattr("train.model.bag_of_words._LOGITS", {"cpu": logits})
        (chunked_H, chunked_H2), chunked = sums_and_gradients(objective, [documents])
        assert chunked_H2.tolist() == whole_H2.tolist()
        torch.testing.assert_close(chunked_H, whole_H, rtol=1e-6, atol=0)
        for name, gradient in whole.items():
            assert float((chunked[name] - gradient).norm()) <= 1e-6 * max(1.0, float(gradient.norm())), name


def test_documents_are_what_the_bag_of_words_counts() -> None:
    """Reference: the documents that are no fillers; a model that knows nothing loses log V nats at each of them."""
    objective, batch = tiny_objective(tiny_config("dupmae")), as_batch(make_documents(LENGTHS))
    with torch.no_grad():
        objective.encoder.embedding_VD.zero_()
        objective.encoder.output_bias_V.zero_()
    selection = objective.select(batch)
    losses_H, _ = objective(batch, selection)
    counts_H = objective.target_counts(selection)
    assert counts_H[2] == sum(length > 2 for length in LENGTHS)
    torch.testing.assert_close(losses_H, torch.tensor(counts_H).float() * torch.tensor(SIZE).log(), rtol=1e-5, atol=0)


def test_weights_of_the_heads_are_those_of_the_configuration() -> None:
    """Reference: the fields of the configuration."""
    settings = {"mlm_weight": 0.25, "reconstruction_weight": 2.0, "bag_of_words_weight": 0.5}
    objective = tiny_objective(tiny_config("dupmae", **settings))
    weights = dict(zip(objective.heads, objective.weights(), strict=True))
    assert weights == {"mlm": 0.25, "decoder": 2.0, "bag_of_words": 0.5}


def test_documents_do_not_touch_one_another() -> None:
    """Reference: the same document alone and among documents of other tokens, in fp64."""
    assert_a_neighbours_tokens_change_nothing(tiny_config("dupmae"), LENGTHS)


def test_micro_batches_and_fillers_change_nothing() -> None:
    """Reference: the batch in one piece, in fp64."""
    assert_micro_batches_add_up(tiny_config("dupmae", **SETTINGS), LENGTHS)


def test_a_batch_of_fillers_has_no_loss_and_no_gradient() -> None:
    """Reference: 0 everywhere, and never NaN."""
    assert_fillers_give_nothing(tiny_config("dupmae"))


def test_recomputing_activations_changes_no_bit() -> None:
    """Reference: the same seed with activations stored, dropout included."""
    config = tiny_config("dupmae", dropout=0.1)
    assert_recomputing_changes_no_bit(config, LENGTHS, "decoder.layer.attention_norm", layers=1)


def test_nothing_is_read_from_the_device() -> None:
    """Reference: the operators that would read a value or make a shape of values; a GPU must not wait for the host."""
    assert_nothing_is_read_from_the_device(tiny_config("dupmae", **SETTINGS), LENGTHS)


@pytest.mark.parametrize("family", ["roberta", "modernbert", "eurobert"])
def test_every_family_has_a_head_to_pool(family: str) -> None:
    """Reference: a gradient at every parameter; eurobert's projection has no bias."""
    encoder = {"model_type": family, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    encoder |= {"intermediate_size": 40, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}
    config = tiny_config("dupmae", model={"encoder": encoder, "gradient_checkpointing": False})
    torch.manual_seed(0)
    objective = build_objective(config, VOCABULARY)
    _, gradients = sums_and_gradients(objective, [make_documents(LENGTHS)])
    assert gradients.keys() == dict(objective.named_parameters()).keys()
