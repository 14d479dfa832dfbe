"""What only a GPU can show; skipped, with the reason, where there is none."""

import numpy as np
import pytest
import torch

from train.model.attention import document_attention
from train.model.documents import Documents
from train.objectives import rng

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_random_words_are_bit_equal_on_cpu_and_gpu():
    """Reference: the CPU. Masks must not depend on where they are drawn."""
    rows, offsets = torch.randint(-1, 2**40, (100_000,)), torch.arange(100_000)
    for seed, epoch, stream in ((0, 0, 0), (2**62 + 1, -1, 3)):
        there = rng.hash_words(seed, epoch, stream, rows.cuda(), offsets.cuda()).cpu()
        here = rng.hash_words(seed, epoch, stream, rows, offsets)
        assert torch.equal(there, here)
        assert torch.equal(rng.integers(30_522, there.cuda()).cpu(), rng.integers(30_522, here))


def test_the_flash_kernel_equals_scaled_dot_products_forward_and_backward():
    """Reference: one scaled dot product per document in fp32 on the CPU."""
    lengths = np.array([2, 17, 128, 1, 63])
    here, there = (Documents.of(lengths, torch.device(device)) for device in ("cpu", "cuda"))
    tensors = [torch.randn(int(lengths.sum()), 4, 64).bfloat16() for _ in range(3)]
    slow = [tensor.float().requires_grad_() for tensor in tensors]
    fast = [tensor.cuda().requires_grad_() for tensor in tensors]
    expected = document_attention(*slow, here)
    found = document_attention(*fast, there)
    torch.testing.assert_close(found.float().cpu(), expected, rtol=2e-2, atol=2e-2)
    expected.sum().backward()
    found.sum().backward()
    for left, right in zip(fast, slow, strict=True):
        torch.testing.assert_close(left.grad.float().cpu(), right.grad, rtol=5e-2, atol=5e-2)
