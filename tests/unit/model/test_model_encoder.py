"""The encoder is transformers' own BERT, one document at a time, however the documents are packed."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from train.config import Model
from train.model.documents import Documents
from train.model.encoder import Encoder, build_encoder, encoder_config
from train.vocabulary import Vocabulary

LENGTHS = (17, 2, 32, 3, 4, 21)  # together more tokens than the model has positions


@pytest.fixture
def encoder(model: Model, vocabulary: Vocabulary) -> Encoder:
    torch.manual_seed(0)
    encoder = build_encoder(model, vocabulary)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return encoder


def random_ids(lengths: Sequence[int], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 50, (length,), generator=generator) for length in lengths]


def encode(encoder: Encoder, ids: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """States of each document from one padding-free call."""
    lengths = [len(document) for document in ids]
    documents = Documents.of(np.array(lengths), torch.device("cpu"))
    return list(encoder(torch.cat(list(ids)), documents.positions_T, documents).split(lengths))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_documents_equal_a_padded_batch_of_transformers(encoder: Encoder, attention: str) -> None:
    """Reference: BertForMaskedLM with the same weights on a padded batch with an attention mask."""
    ids = random_ids(LENGTHS)
    config = BertConfig.from_dict(encoder.masked_lm.config.to_dict())
    config._attn_implementation = attention
    theirs = BertForMaskedLM(config)
    theirs.load_state_dict(encoder.masked_lm.state_dict())
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=2)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(document) for document in ids], batch_first=True)
    output = theirs(input_ids=padded, attention_mask=mask, output_hidden_states=True)
    for number, states in enumerate(encode(encoder, ids)):
        expected = output.hidden_states[-1][number, : len(states)]
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
        expected = output.logits[number, : len(states)]
        torch.testing.assert_close(encoder.logits(states), expected, atol=3e-5, rtol=1e-5)


def test_a_packed_document_equals_the_document_alone_bit_for_bit(encoder: Encoder) -> None:
    """Reference: each document as a batch of its own; MKL has other kernels for a handful of rows."""
    ids = random_ids(LENGTHS)
    for document, states in zip(ids, encode(encoder, ids), strict=True):
        [alone] = encode(encoder, [document])
        torch.testing.assert_close(states, alone, atol=1e-5, rtol=1e-5)
        if len(document) >= 17 and torch.backends.mkl.is_available():
            assert torch.equal(states, alone)
            assert torch.equal(encoder.logits(states), encoder.logits(alone))


def test_a_neighbours_tokens_change_no_bit(encoder: Encoder) -> None:
    """Reference: the batch before one document's tokens were replaced."""
    ids, replaced = random_ids(LENGTHS), random_ids(LENGTHS, seed=1)
    before = encode(encoder, ids)
    for number in range(len(ids)):
        after = encode(encoder, [*ids[:number], replaced[number], *ids[number + 1 :]])
        changed = [not torch.equal(left, right) for left, right in zip(before, after, strict=True)]
        assert changed == [other == number for other in range(len(ids))]


def test_every_projection_is_tied_to_the_token_embedding(encoder: Encoder) -> None:
    """Reference: one storage, and so one name among the parameters."""
    head = encoder.masked_lm.get_output_embeddings()
    assert head.weight is encoder.embedding_VD
    assert sum(parameter.shape == (50, 24) for parameter in encoder.parameters()) == 1


def test_the_configuration_reaches_transformers(model: Model, vocabulary: Vocabulary) -> None:
    """Reference: the fields of the configuration and the vocabulary, one by one."""
    config = encoder_config(model, vocabulary.size, vocabulary.special_ids)
    for name, value in model.encoder.model_dump(exclude={"extra"}).items():
        assert getattr(config, name) == value, name
    assert (config.vocab_size, config.pad_token_id, config.attention_probs_dropout_prob) == (50, 2, 0.0)


def test_weights_start_from_the_configured_deviation_and_follow_the_seed(model: Model, vocabulary: Vocabulary) -> None:
    """Reference: the deviation of 1,000 and more normal draws, within a tenth; equal and other seeds."""
    built = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        built.append(build_encoder(model, vocabulary))
    for name, parameter in built[0].named_parameters():
        assert torch.equal(parameter, built[1].get_parameter(name)), name
        if parameter.ndim == 2 and parameter.numel() >= 900:
            assert not torch.equal(parameter, built[2].get_parameter(name)), name
            assert 0.27 < parameter.std() < 0.33, name
    assert all(parameter.dtype == torch.float32 for parameter in built[0].parameters())
