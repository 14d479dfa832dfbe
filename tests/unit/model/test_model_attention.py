"""Padding-free attention equals a softmax written out for each document and head.

Legend: T tokens, H heads, W width of a head.
"""

import numpy as np
import pytest
import torch

from train.model.attention import _transformers_attention, document_attention
from train.model.documents import Documents

LENGTHS = (7, 1, 2, 19, 3)
HEADS, WIDTH = 3, 8


@pytest.fixture
def documents() -> Documents:
    return Documents.of(np.array(LENGTHS), torch.device("cpu"))


def random_inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [2 * torch.randn(sum(LENGTHS), HEADS, WIDTH, generator=generator, dtype=dtype) for _ in range(3)]


def slow_attention(query, key, value, scale: float) -> torch.Tensor:
    """One token and one head at a time."""
    rows, start = [], 0
    for length in LENGTHS:
        own = slice(start, start + length)
        for token in range(start, start + length):
            heads = [
                (scale * key[own, head] @ query[token, head]).softmax(0) @ value[own, head] for head in range(HEADS)
            ]
            rows.append(torch.stack(heads))
        start += length
    return torch.stack(rows)


@pytest.mark.parametrize("scale", [None, 0.1, 1.0])
def test_attention_equals_a_softmax_within_each_document(documents: Documents, scale: float | None) -> None:
    """Reference: the definition, one token and one head at a time, in fp64."""
    inputs = random_inputs(torch.float64)
    expected = slow_attention(*inputs, scale=scale or WIDTH**-0.5)
    torch.testing.assert_close(document_attention(*inputs, documents, scale), expected, atol=1e-12, rtol=1e-12)
    narrow = document_attention(*(tensor.float() for tensor in inputs), documents, scale)
    torch.testing.assert_close(narrow.double(), expected, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_softmax(documents: Documents) -> None:
    """Reference: torch's gradient of the definition."""
    fast, slow = ([tensor.requires_grad_() for tensor in random_inputs(torch.float64)] for _ in range(2))
    direction = torch.linspace(-1, 1, sum(LENGTHS) * HEADS * WIDTH, dtype=torch.float64).view(-1, HEADS, WIDTH)
    (document_attention(*fast, documents) * direction).sum().backward()
    (slow_attention(*slow, scale=WIDTH**-0.5) * direction).sum().backward()
    for ours, theirs in zip(fast, slow, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-12, rtol=1e-12)


def test_no_gradient_crosses_a_document_bound(documents: Documents) -> None:
    """Reference: exact zeros at all tokens but those of the document whose output is summed."""
    inputs = [tensor.requires_grad_() for tensor in random_inputs()]
    document_attention(*inputs, documents)[10:29].square().sum().backward()
    for tensor in inputs:
        used = tensor.grad.abs().sum((1, 2)) > 0
        assert used.tolist() == [10 <= token < 29 for token in range(sum(LENGTHS))]


def test_the_signature_that_transformers_calls_gives_the_same(documents: Documents) -> None:
    """Reference: the function for our own decoder, with a batch dimension and heads before tokens."""
    inputs = random_inputs()
    batched = [tensor.transpose(0, 1)[None] for tensor in inputs]
    output, weights = _transformers_attention(torch.nn.Identity(), *batched, None, documents=documents, scaling=0.3)
    assert weights is None
    assert torch.equal(output[0], document_attention(*inputs, documents, 0.3))


def test_attention_dropout_is_refused(documents: Documents) -> None:
    """Reference: the kernels have no dropout, and leaving it out silently would be another model."""
    batched = [tensor.transpose(0, 1)[None] for tensor in random_inputs()]
    with pytest.raises(ValueError, match=r"no dropout, the model asks for 0\.1"):
        _transformers_attention(torch.nn.Identity(), *batched, None, documents=documents, dropout=0.1)
