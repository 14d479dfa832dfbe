"""Matrix products in bf16 on processors without bf16 instructions: multiplied in fp32, rounded once.

PyTorch's own fallback there reaches a tenth of the fp32 speed. The arithmetic is what bf16 hardware does: bf16 inputs,
products and sums in fp32, the result rounded to bf16.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch


@cache
def lacks_bf16() -> bool:
    """Whether this processor has no instructions for bf16 products."""
    return not torch.ops.mkldnn._is_mkldnn_bf16_supported()


@cache
def speed_up_bf16_products() -> torch.library.Library | None:
    """Replace the two products that linear layers call, where the processor needs it; the answer keeps them alive."""
    if not lacks_bf16():
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel is replaced: that is the purpose
        library.impl("mm", _mm, "CPU", allow_override=True)
        library.impl("addmm", _addmm, "CPU", allow_override=True)
    return library


def _mm(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    a, b = _widened(a_MK, b_KN)
    out_MN = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    torch.ops.aten.mm.out(a, b, out=out_MN)
    return out_MN.to(a_MK.dtype)


def _addmm(
    bias: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    wide_bias, a, b = _widened(bias, a_MK, b_KN)
    out_MN = torch.empty(a.shape[0], b.shape[1], dtype=a.dtype, device=a.device)
    torch.ops.aten.addmm.out(wide_bias, a, b, beta=beta, alpha=alpha, out=out_MN)
    return out_MN.to(a_MK.dtype)


def _widened(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """fp32 copies where all are bf16; a mixture is left to torch, which refuses it as a GPU would."""
    if all(tensor.dtype == torch.bfloat16 for tensor in tensors):
        return tuple(tensor.float() for tensor in tensors)
    return tensors
