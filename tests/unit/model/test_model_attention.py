"""Padding-free attention equals a softmax written out for each document and head.

Legend: T tokens (queries), S tokens (keys), H heads, W width of a head.
"""

import numpy as np
import pytest
import torch

from train.model.attention import _transformers_attention, document_attention
from train.model.document_products import opaque_document_products
from train.model.documents import Documents

LENGTHS = (7, 1, 2, 19, 3)
LONG = (150, 1, 64, 65, 200)  # longer than one band of queries, exactly as long, and one token more
KEY_LENGTHS = (3, 9, 1, 4, 20)
HEADS, WIDTH = 3, 8


def bounded(lengths: tuple[int, ...]) -> Documents:
    return Documents.of(np.array(lengths), torch.device("cpu"))


@pytest.fixture
def documents() -> Documents:
    return bounded(LENGTHS)


def random_inputs(
    dtype: torch.dtype = torch.float32, lengths: tuple[int, ...] = LENGTHS, keys: tuple[int, ...] | None = None
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [sum(lengths), *[sum(keys or lengths)] * 2]
    return [2 * torch.randn(size, HEADS, WIDTH, generator=generator, dtype=dtype) for size in sizes]


def slow_attention(
    query, key, value, scale: float, lengths=LENGTHS, keys=None, causal: bool = False, window: int | None = None
) -> torch.Tensor:
    """One token and one head at a time."""
    rows, start, first = [], 0, 0
    for length, key_length in zip(lengths, keys or lengths, strict=True):
        for i in range(length):
            seen = [
                first + j
                for j in range(key_length)
                if (not causal or j <= i) and (window is None or abs(i - j) < window)
            ]
            heads = [
                (scale * key[seen, head] @ query[start + i, head]).softmax(0) @ value[seen, head]
                for head in range(HEADS)
            ]
            rows.append(torch.stack(heads))
        start, first = start + length, first + key_length
    return torch.stack(rows)


def assert_equal_with_gradients(fast, slow, inputs: list[torch.Tensor]) -> None:
    """Outputs and gradients of two functions of the same three tensors."""
    direction = torch.linspace(-1, 1, inputs[0].numel(), dtype=inputs[0].dtype).view_as(inputs[0])
    results = []
    for function in (fast, slow):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        output = function(*leaves)
        results.append([output, *torch.autograd.grad((output * direction).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("scale", [None, 0.1, 1.0])
def test_attention_equals_a_softmax_within_each_document(documents: Documents, scale: float | None) -> None:
    """Reference: the definition, one token and one head at a time, in fp64."""
    inputs = random_inputs(torch.float64)
    expected = slow_attention(*inputs, scale=scale or WIDTH**-0.5)
    torch.testing.assert_close(document_attention(*inputs, documents, scale), expected, atol=1e-12, rtol=1e-12)
    narrow = document_attention(*(tensor.float() for tensor in inputs), documents, scale)
    torch.testing.assert_close(narrow.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [None, 1, 2, 65, 66, 200])
def test_windows_and_causality_equal_a_softmax_over_what_is_seen(causal: bool, window: int | None) -> None:
    """Reference: the definition with its gradients, in fp64; documents of several bands, of one, and of one token."""
    inputs = random_inputs(torch.float64, LONG)
    assert_equal_with_gradients(
        lambda *x: document_attention(*x, bounded(LONG), causal=causal, window=window),
        lambda *x: slow_attention(*x, WIDTH**-0.5, LONG, causal=causal, window=window),
        inputs,
    )


def test_cross_attention_equals_a_softmax_over_the_other_tokens(documents: Documents) -> None:
    """Reference: the definition with its gradients, in fp64; fewer, as many and more keys than queries."""
    inputs = random_inputs(torch.float64, keys=KEY_LENGTHS)
    assert_equal_with_gradients(
        lambda *x: document_attention(*x, documents, key_documents=bounded(KEY_LENGTHS)),
        lambda *x: slow_attention(*x, WIDTH**-0.5, keys=KEY_LENGTHS),
        inputs,
    )
    with pytest.raises(ValueError, match="queries and keys of the same tokens"):
        document_attention(*inputs, documents, key_documents=bounded(KEY_LENGTHS), causal=True)


@pytest.mark.parametrize(("keys", "causal", "window"), [(KEY_LENGTHS, False, None), (LENGTHS, True, 3)])
def test_the_operator_that_compilers_see_gives_the_same(keys, causal: bool, window: int | None) -> None:
    """Reference: the function it wraps, with gradients; and torch's own check of shapes, strides and registration."""
    inputs, bounds = (
        random_inputs(torch.float64, keys=keys),
        [bounded(lengths).cu_seqlens_D1 for lengths in (LENGTHS, keys)],
    )
    others = None if causal else bounded(keys)
    assert_equal_with_gradients(
        lambda *x: opaque_document_products(*x, *bounds, 0.3, causal, window),
        lambda *x: document_attention(*x, bounded(LENGTHS), 0.3, key_documents=others, causal=causal, window=window),
        inputs,
    )
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.library.opcheck(opaque_document_products, (*leaves, *bounds, 0.3, causal, window))


def test_gradients_equal_those_of_the_softmax(documents: Documents) -> None:
    """Reference: torch's gradient of the definition."""
    assert_equal_with_gradients(
        lambda *x: document_attention(*x, documents),
        lambda *x: slow_attention(*x, WIDTH**-0.5),
        random_inputs(torch.float64),
    )


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


def test_windows_and_shared_keys_of_transformers_are_heard(documents: Documents) -> None:
    """Reference: our own function with the window, and with every key and value once per query head."""
    query, key, value = random_inputs()
    key, value = key[:, :1], value[:, :1]
    batched = [tensor.transpose(0, 1)[None] for tensor in (query, key, value)]
    output, _ = _transformers_attention(torch.nn.Identity(), *batched, None, documents=documents, sliding_window=4)
    expected = document_attention(query, key.expand_as(query), value.expand_as(query), documents, window=4)
    torch.testing.assert_close(output[0], expected)
    assert not torch.equal(expected, document_attention(query, key.expand_as(query), value.expand_as(query), documents))


def test_attention_dropout_is_refused(documents: Documents) -> None:
    """Reference: the kernels have no dropout, and leaving it out silently would be another model."""
    batched = [tensor.transpose(0, 1)[None] for tensor in random_inputs()]
    with pytest.raises(ValueError, match=r"no dropout, the model asks for 0\.1"):
        _transformers_attention(torch.nn.Identity(), *batched, None, documents=documents, dropout=0.1)
