"""Cross-entropy over the vocabulary at the targets, a chunk of targets at a time.

The logits of all targets are never in memory together: gradients are made with the chunk, as long as its logits are
there. Softmax, loss and sums are in fp32.

Legend: N targets, C targets of a chunk, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}  # of a chunk: small enough for caches, large enough for a GPU


def cross_entropy(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the cross-entropy in nats, number of targets with the largest logit); 0 and 0 without targets."""
    result: tuple[torch.Tensor, torch.Tensor] = _Chunked.apply(  # type: ignore[no-untyped-call]
        *_operands(hidden_ND, weight_VD, bias_V), targets_N, torch.is_grad_enabled()
    )
    return result


@torch.no_grad()
def most_likely(hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None) -> torch.Tensor:
    """The id [N] with the largest logit: what `cross_entropy` counts as a hit where it is the target."""
    hidden_ND, weight_VD, bias_V = _operands(hidden_ND, weight_VD, bias_V)
    wide = torch.promote_types(hidden_ND.dtype, torch.float32)
    best = [torch.empty(0, dtype=torch.int64, device=hidden_ND.device)]
    for chunk in _chunks(hidden_ND, weight_VD):
        logits_CV = torch.addmm(bias_V, hidden_ND[chunk], weight_VD.T).to(wide)
        best.append(logits_CV.max(-1).indices)  # not argmax: of equal logits, which bf16 has, it may name another
    return torch.cat(best)


def _operands(
    hidden_ND: torch.Tensor, weight_VD: torch.Tensor, bias_V: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    if bias_V is None:
        bias_V = weight_VD.new_zeros(len(weight_VD))
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):  # once here, or every chunk would cast the whole embedding
        dtype = torch.get_autocast_dtype(device)
        return hidden_ND.to(dtype), weight_VD.to(dtype), bias_V.to(dtype)
    return hidden_ND, weight_VD, bias_V


def _chunks(hidden_ND: torch.Tensor, weight_VD: torch.Tensor) -> Iterator[slice]:
    rows = max(128, _LOGITS[hidden_ND.device.type] // len(weight_VD))
    for start in range(0, len(hidden_ND), rows):
        yield slice(start, start + rows)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor,
        targets_N: torch.Tensor,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        loss, hits = hidden_ND.new_zeros((), dtype=wide), targets_N.new_zeros(())
        if keep:
            grad_ND = torch.empty_like(hidden_ND)
            grad_VD = torch.zeros_like(weight_VD, dtype=wide)
            grad_V = torch.zeros_like(bias_V, dtype=wide)
        for chunk in _chunks(hidden_ND, weight_VD):
            hidden_CD = hidden_ND[chunk]
            logits_CV = torch.addmm(bias_V, hidden_CD, weight_VD.T).to(wide)
            loss_of_chunk, hits_of_chunk, slope_CV = _scored(logits_CV, targets_N[chunk])
            loss, hits = loss + loss_of_chunk, hits + hits_of_chunk
            if keep:
                grad_V += slope_CV.sum(0)
                narrow_CV = slope_CV.to(hidden_CD.dtype)
                grad_ND[chunk] = narrow_CV @ weight_VD  # not `out=`: processors without bf16 have a fast product here
                _add_product(grad_VD, narrow_CV.T, hidden_CD)
        if keep:
            ctx.save_for_backward(grad_ND, grad_VD, grad_V)
            ctx.dtypes = grad_ND.dtype, weight_VD.dtype, bias_V.dtype
        ctx.mark_non_differentiable(hits)
        return loss, hits

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The slope holds the loss scale of fp16, which fp16 itself cannot hold.
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grad.to(slope.dtype) * slope).to(dtype) for grad, dtype in pairs), None, None


def _scored(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, hits, slope of the loss by each logit); the logits are overwritten."""
    top_C, best_C = logits_CV.max(-1)
    of_target_C = logits_CV.gather(1, targets_C[:, None])[:, 0]
    slope_CV = logits_CV.sub_(top_C[:, None]).exp_()
    total_C = slope_CV.sum(-1)
    loss = (total_C.log() + top_C - of_target_C).sum()
    slope_CV.div_(total_C[:, None])
    slope_CV.scatter_add_(1, targets_C[:, None], slope_CV.new_full((len(targets_C), 1), -1.0))
    return loss, (best_C == targets_C).sum(), slope_CV


def _add_product(sum_VD: torch.Tensor, left_VC: torch.Tensor, right_CD: torch.Tensor) -> None:
    """Add a product to a sum, without another copy where both have the same precision."""
    if left_VC.dtype == sum_VD.dtype:
        sum_VD.addmm_(left_VC, right_CD)
    else:
        sum_VD += left_VC @ right_CD
