"""RetroMAE equals its definition; every query has a mask of its own; the decoder depends on the state of [CLS]."""

from collections.abc import Sequence

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
    learn,
)
from objective_reference import Draws, Reference
from objective_toys import LENGTHS, SEED, Document, as_batch, make_documents, run, tiny_config, tiny_objective
from retromae_reference import slow_retromae, slow_shuffled_retromae, visible_places

from train.config import Config
from train.model.documents import Documents
from train.model.encoder import build_encoder
from train.model.enhanced_decoder import EnhancedDecoder
from train.objectives import build_objective
from train.objectives.retromae import RetroMae
from train.vocabulary import Vocabulary

SHORT = (17, 2, 9, 3, 21, 4)  # padded to 16 and to 32


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_unit": "word", "mask_ratio": 0.3},
        {"mask_ratio": 0.4, "decoder_mask_ratio": 0.8},
        {"decoder_query": "embeddings", "mask_ratio": 0.3, "decoder_mask_ratio": 0.3},
    ],
    ids=["words", "tokens", "embeddings"],
)
def test_retromae_equals_its_definition(settings: dict) -> None:
    """Reference: one document, one query and one key at a time; losses, hits and all gradients."""
    assert_equals_definition(tiny_config("retromae", **settings), LENGTHS, slow_retromae, least_hits=1)


def test_the_probe_is_the_decoder_with_the_state_of_another_document() -> None:
    """Reference: the definition with every state of [CLS] taken from the document before."""
    config = tiny_config("retromae", mask_ratio=0.3)
    objective, documents = tiny_objective(config), make_documents(SHORT)
    learn(objective, documents, steps=5)
    batch = as_batch(documents, EPOCH)
    selection = objective.select(batch)
    with torch.no_grad():
        shuffled = objective.shuffled(selection)
        loss, count = objective(batch, shuffled)[0][1], objective.target_counts(shuffled)[1]
        own = objective(batch, selection)[0]
        totals = slow_shuffled_retromae(Reference(objective, config, "sdpa", None), documents, EPOCH)
    torch.testing.assert_close(loss, totals[1].loss, rtol=1e-5, atol=1e-5)
    assert count == objective.target_counts(selection)[1] == sum(SHORT) - 2 * len(SHORT)
    assert abs(float(loss - own[1])) > 1e-2


def masks(documents: Sequence[Document], epoch: int = EPOCH, **settings: float) -> list[np.ndarray]:
    """Per document, what each token sees [query, key], as the decoder is told."""
    objective, found = tiny_objective(tiny_config("retromae", **settings)), []
    objective.decoder.register_forward_pre_hook(lambda _, arguments: found.append(arguments[2:]))
    with torch.no_grad():
        run(objective, as_batch(documents, epoch))
    [(buckets, seen)] = found
    seen_by_start = {}
    for bucket in buckets.groups:
        lengths = bucket.real_BL.sum(1).tolist()
        rows = zip(bucket.places_BL[:, 0].tolist(), lengths, seen(bucket).numpy(), strict=True)
        seen_by_start |= {start: mask[:length, :length] for start, length, mask in rows}
        assert all(not mask[:, length:].any() for length, mask in zip(lengths, seen(bucket), strict=True))
        assert seen(bucket).any(-1).all()  # a query that sees nothing would be NaN
    return [mask for _, mask in sorted(seen_by_start.items())]


def test_masks_are_the_slow_ones_in_any_batch() -> None:
    """Reference: Python's integers, a query and a key at a time; alone, among others, in another order."""
    documents = make_documents(SHORT)
    for batch in (documents, documents[::-1], *([document] for document in documents)):
        for document, mask in zip(batch, masks(batch, decoder_mask_ratio=0.6), strict=True):
            draws = Draws(document, SEED, EPOCH)
            for query in range(len(document.ids)):
                assert np.flatnonzero(mask[query]).tolist() == visible_places(draws, query, 0.6)


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7])
def test_words_are_hidden_whole_at_the_ratio_and_independently(ratio: float) -> None:
    """Reference: the binomial distribution, to 4.5 standard deviations.

    [CLS] and [SEP] are always seen, a token never sees itself; two words, two queries and two epochs agree as often as
    independent draws do.
    """
    documents = make_documents((40,) * 60)
    hidden, pairs, queries, epochs = [], [], [], []
    later = masks(documents, epoch=EPOCH + 1, decoder_mask_ratio=ratio)
    for document, mask, other in zip(documents, masks(documents, decoder_mask_ratio=ratio), later, strict=True):
        assert mask[:, [0, -1]].all() and not mask[range(1, 39), range(1, 39)].any()
        begins = np.flatnonzero(document.starts)
        for begin, end in zip(begins, [*begins[1:], 40], strict=True):
            rows = [row for row in range(40) if not begin <= row < end]
            assert (mask[rows, begin:end] == mask[rows, begin : begin + 1]).all()
        # The queries [CLS] and [SEP] are in no word: for them nothing is hidden for being itself.
        first, last, later_first = (~rows[begins[1:-1]] for rows in (mask[0], mask[39], other[0]))
        hidden += first.tolist()
        pairs += (first[1:] & first[:-1]).tolist()
        queries += (first & last).tolist()
        epochs += (first & later_first).tolist()
    for found, expected in ((hidden, ratio), (pairs, ratio**2), (queries, ratio**2), (epochs, ratio**2)):
        assert abs(np.mean(found) - expected) < 4.5 * np.sqrt(expected * (1 - expected) / len(found))


def test_documents_do_not_touch_one_another() -> None:
    """Reference: the same document alone and among documents of other tokens, in fp64."""
    assert_a_neighbours_tokens_change_nothing(tiny_config("retromae"), SHORT)


def test_micro_batches_and_fillers_change_nothing() -> None:
    """Reference: the batch in one piece, in fp64."""
    assert_micro_batches_add_up(tiny_config("retromae", mask_unit="word"), LENGTHS)


@pytest.mark.parametrize("query", ["positions", "embeddings"])
def test_a_batch_of_fillers_has_no_loss_and_no_gradient(query: str) -> None:
    """Reference: 0 everywhere, and never NaN."""
    assert_fillers_give_nothing(tiny_config("retromae", decoder_query=query))


def test_recomputing_activations_changes_no_bit() -> None:
    """Reference: the same seed with activations stored, dropout included."""
    config = tiny_config("retromae", dropout=0.1)
    assert_recomputing_changes_no_bit(config, LENGTHS, "decoder.layer.attention_norm", layers=1)


def test_nothing_is_read_from_the_device() -> None:
    """Reference: the operators that would read a value or make a shape of values; a GPU must not wait for the host."""
    assert_nothing_is_read_from_the_device(tiny_config("retromae", mask_unit="word"), LENGTHS)


def test_large_buckets_are_cut_without_changing_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the same batch with all documents of a padded length in one bucket."""
    objective, batch = tiny_objective(tiny_config("retromae")), as_batch(make_documents(LENGTHS))
    whole, _ = run(objective, batch)
    monkeypatch.setattr("train.model.enhanced_decoder._PAIRS", 16 * 16 * 2)
    sizes = []
    objective.decoder.register_forward_pre_hook(lambda _, arguments: sizes.extend(arguments[2].groups))
    cut, _ = run(objective, batch)
    assert [tuple(bucket.places_BL.shape) for bucket in sizes] == [(2, 16), (2, 16), (1, 16), (1, 32), (1, 32), (1, 64)]
    torch.testing.assert_close(cut, whole, rtol=1e-6, atol=0)


def test_weights_of_the_heads_are_those_of_the_configuration() -> None:
    """Reference: the fields of the configuration."""
    objective = tiny_objective(tiny_config("retromae", mlm_weight=0.25, reconstruction_weight=2.0))
    assert dict(zip(objective.heads, objective.weights(), strict=True)) == {"mlm": 0.25, "decoder": 2.0}


@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert", "eurobert"])
def test_every_family_embeds_tokens_as_its_encoder_does(family: str) -> None:
    """Reference: what the encoder's first layer is given, and the decoder's own positions where it has some."""
    config = family_config(family)
    torch.manual_seed(0)
    encoder = build_encoder(config.model, FAMILY_VOCABULARY)
    decoder = EnhancedDecoder(encoder, config.model)
    lengths = np.array([7, 2, 12])
    documents, ids_T = Documents.of(lengths, torch.device("cpu")), torch.randint(7, 61, (21,))
    with torch.no_grad():
        found_TD = decoder.embedded(encoder, documents.positions_T, input_ids=ids_T)
        token_TD = encoder.masked_lm.get_input_embeddings()(ids_T)
        from_vectors_TD = decoder.embedded(encoder, documents.positions_T, inputs_embeds=token_TD)
        output = encoder.masked_lm.base_model(
            input_ids=ids_T[None],
            position_ids=documents.positions_T[None] + (3 if family == "roberta" else 0),
            documents=documents,
            output_hidden_states=True,
        )
        rows_TD = decoder.position_vectors(encoder, documents.positions_T)
    own = family in ("modernbert", "eurobert")
    assert own == (decoder.positions is not None)
    assert torch.equal(found_TD, output.hidden_states[0][0] + (rows_TD if own else 0))
    assert torch.equal(from_vectors_TD, found_TD)
    table_TD = decoder.positions.weight if own else encoder.masked_lm.base_model.embeddings.position_embeddings.weight
    assert torch.equal(rows_TD, table_TD[documents.positions_T + (3 if family == "roberta" else 0)])


@pytest.mark.parametrize("family", ["roberta", "modernbert", "eurobert"])
def test_every_family_learns(family: str) -> None:
    """Reference: the losses before; every parameter has a gradient."""
    torch.manual_seed(0)
    objective = build_objective(family_config(family), FAMILY_VOCABULARY)
    assert isinstance(objective, RetroMae)
    documents = make_documents(SHORT)
    before = run(objective, as_batch(documents, EPOCH))[0]
    learn(objective, documents, steps=15)
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert (run(objective, as_batch(documents, EPOCH))[0] < 0.9 * before).all()


FAMILY_VOCABULARY = Vocabulary(
    size=61,
    special_ids={"pad": 2, "unk": 1, "cls": 0, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(7, 61),
    most_frequent_id=11,
    unigram_entropy=1.0,
)


def family_config(family: str) -> Config:
    encoder = {"model_type": family, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}
    encoder |= {"intermediate_size": 40, "max_position_embeddings": 40, "hidden_dropout_prob": 0.0}
    return tiny_config("retromae", model={"encoder": encoder, "gradient_checkpointing": False})
