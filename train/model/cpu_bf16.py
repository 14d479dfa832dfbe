"""Matrix products in bf16 on processors without bf16 instructions: multiplied in fp32, rounded once.

PyTorch's own fallback there reaches a tenth of the fp32 speed. The arithmetic is what bf16 hardware does: bf16 inputs,
products and sums in fp32, the result rounded to bf16.
"""

from __future__ import annotations

import warnings
from functools import cache

import torch


@cache
def speed_up_bf16_products() -> torch.library.Library | None:
    """Replace the two products that linear layers call, where the processor needs it; the answer keeps them alive."""
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that a kernel is replaced: that is the purpose
        library.impl("mm", _mm, "CPU", allow_override=True)
        library.impl("addmm", _addmm, "CPU", allow_override=True)
    return library


def _mm(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    out_MN = torch.empty(a_MK.shape[0], b_KN.shape[1], dtype=_wide(a_MK), device=a_MK.device)
    torch.ops.aten.mm.out(a_MK.to(out_MN.dtype), b_KN.to(out_MN.dtype), out=out_MN)
    return out_MN.to(a_MK.dtype)


def _addmm(
    bias: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor, *, beta: float = 1, alpha: float = 1
) -> torch.Tensor:
    out_MN = torch.empty(a_MK.shape[0], b_KN.shape[1], dtype=_wide(a_MK), device=a_MK.device)
    wide = (tensor.to(out_MN.dtype) for tensor in (bias, a_MK, b_KN))
    torch.ops.aten.addmm.out(*wide, beta=beta, alpha=alpha, out=out_MN)
    return out_MN.to(a_MK.dtype)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    return torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
