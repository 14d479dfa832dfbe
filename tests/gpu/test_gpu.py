"""What only a GPU can show; skipped, with the reason, where there is none."""

import numpy as np
import pytest
import torch

from train.model.attention import document_attention
from train.model.documents import Documents
from train.objectives import rng

pytestmark = pytest.mark.gpu


def test_random_words_are_bit_equal_on_cpu_and_gpu(device: torch.device) -> None:
    """Reference: the CPU. Masks must not depend on where they are drawn."""
    rows, offsets = torch.randint(-1, 2**40, (100_000,)), torch.arange(100_000)
    for seed, epoch, stream in ((0, 0, 0), (2**62 + 1, -1, 3)):
        there = rng.hash_words(seed, epoch, stream, rows.to(device), offsets.to(device)).cpu()
        here = rng.hash_words(seed, epoch, stream, rows, offsets)
        assert torch.equal(there, here)
        assert torch.equal(rng.integers(30_522, there.to(device)).cpu(), rng.integers(30_522, here))


@pytest.mark.parametrize("keys", ["own", "own, causal", "own, within 5", "own, causal within 5", "others"])
def test_the_flash_kernel_equals_scaled_dot_products_forward_and_backward(keys: str, device: torch.device) -> None:
    """Reference: one scaled dot product per document in fp32 on the CPU."""
    lengths = np.array([2, 17, 128, 1, 63])
    key_lengths = lengths[::-1].copy() if keys == "others" else lengths
    settings = {"causal": "causal" in keys, "window": 5 if "within" in keys else None}
    tensors = [torch.randn(int(total.sum()), 4, 64).bfloat16() for total in (lengths, key_lengths, key_lengths)]
    slow = [tensor.float().requires_grad_() for tensor in tensors]
    fast = [tensor.to(device).requires_grad_() for tensor in tensors]
    expected, found = (
        document_attention(
            *inputs,
            Documents.of(lengths, place),
            key_documents=Documents.of(key_lengths, place) if keys == "others" else None,
            **settings,
        )
        for inputs, place in ((slow, torch.device("cpu")), (fast, device))
    )
    torch.testing.assert_close(found.float().cpu(), expected, rtol=2e-2, atol=2e-2)
    expected.sum().backward()
    found.sum().backward()
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left.grad.float().cpu(), right.grad, rtol=5e-2, atol=5e-2)
