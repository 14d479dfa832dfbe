"""The loss on a document's set of tokens (Xiao et al. 2023, "RetroMAE-2", which is DupMAE).

Logits of all ordinary tokens are max-pooled over the document; the loss is the mean over the document's distinct tokens
of -log softmax of the pooled logits (the authors' code divides by the number of tokens, repeated ones included).

The logits of all tokens are never in memory together: each document keeps, for every entry of the vocabulary, the
largest logit and the position it came from, and gradients go to these alone.

Legend: T tokens, D width, V vocabulary, B documents of a bucket, L their padded length, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from train.model.buckets import Bucket, Buckets
from train.model.documents import Documents

_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}  # of a chunk: small enough for caches, large enough for a GPU


def bag_of_words(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor | None,
    ids_T: torch.Tensor,
    ordinary_T: torch.Tensor,
    documents: Documents,
    most_frequent_id: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the documents' losses in nats, [hits, hits of the most frequent token]).

    A document is hit where its largest pooled logit is of a token that it holds. Documents without ordinary tokens
    count nowhere.
    """
    if bias_V is None:
        bias_V = weight_VD.new_zeros(len(weight_VD))
    chunk = _LOGITS[hidden_TD.device.type]
    buckets = Buckets.of(documents, lambda padded: chunk // (padded * len(weight_VD)))
    result: tuple[torch.Tensor, torch.Tensor] = _Pooled.apply(  # type: ignore[no-untyped-call]
        hidden_TD, weight_VD, bias_V, ids_T, ordinary_T, buckets.groups, most_frequent_id, torch.is_grad_enabled()
    )
    return result


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_TD: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor,
        ids_T: torch.Tensor,
        ordinary_T: torch.Tensor,
        buckets: list[Bucket],
        most_frequent_id: int,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, hits_2 = hidden_TD.new_zeros((), dtype=torch.float32), ids_T.new_zeros(2)
        if keep:
            grads = torch.zeros_like(hidden_TD), *(torch.zeros_like(x, dtype=_wide(x)) for x in (weight_VD, bias_V))
        for bucket in buckets:
            counted_BL = bucket.real_BL & ordinary_T[bucket.places_BL]
            best_BV, place_BV = _pooled(hidden_TD, weight_VD, bias_V, bucket, counted_BL)
            present_BV = _present(ids_T[bucket.places_BL], counted_BL, len(weight_VD))
            loss_of_bucket, hits_of_bucket, slope_BV = _scored(best_BV, present_BV, most_frequent_id)
            loss, hits_2 = loss + loss_of_bucket, hits_2 + hits_of_bucket
            if keep:
                _add_gradients(grads, slope_BV, place_BV, hidden_TD, weight_VD, bucket)
        if keep:
            ctx.save_for_backward(*grads)
            ctx.dtypes = hidden_TD.dtype, weight_VD.dtype, bias_V.dtype
        ctx.mark_non_differentiable(hits_2)
        return loss, hits_2

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The slope holds the loss scale of fp16, which fp16 itself cannot hold.
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *((grad.to(slope.dtype) * slope).to(dtype) for grad, dtype in pairs), None, None, None, None, None


def _pooled(
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bias_V: torch.Tensor,
    bucket: Bucket,
    counted_BL: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest logit of each document for each entry of the vocabulary, and the position it stands at."""
    size = len(bucket.places_BL), len(weight_VD)
    best_BV = torch.full(size, -torch.inf, dtype=_wide(hidden_TD), device=hidden_TD.device)
    place_BV = torch.zeros(size, dtype=torch.int64, device=hidden_TD.device)
    for part in _parts(bucket, len(weight_VD), hidden_TD.device):
        rows_ND = hidden_TD.index_select(0, bucket.places_BL[:, part].flatten())
        logits_BCV = torch.addmm(bias_V, rows_ND, weight_VD.T).to(best_BV.dtype).view(size[0], -1, size[1])
        top_BV, at_BV = logits_BCV.masked_fill_(~counted_BL[:, part, None], -torch.inf).max(1)
        place_BV = torch.where(top_BV > best_BV, at_BV + part.start, place_BV)
        best_BV = torch.maximum(best_BV, top_BV)
    return best_BV, place_BV


def _parts(bucket: Bucket, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """Positions whose logits are in memory together."""
    documents, padded = bucket.places_BL.shape
    step = max(1, _LOGITS[device.type] // (documents * vocabulary))
    for start in range(0, padded, step):
        yield slice(start, min(start + step, padded))


def _present(ids_BL: torch.Tensor, counted_BL: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Whether each document holds each entry of the vocabulary, bool[B, V]."""
    present_BW = torch.zeros(len(ids_BL), vocabulary + 1, dtype=torch.bool, device=ids_BL.device)
    return present_BW.scatter_(1, torch.where(counted_BL, ids_BL, vocabulary), True)[:, :vocabulary]


def _scored(
    best_BV: torch.Tensor, present_BV: torch.Tensor, most_frequent_id: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of losses, hits, slope of the loss by each pooled logit); all 0 for documents without ordinary tokens."""
    count_B1 = present_BV.sum(1, keepdim=True)
    best_BV = best_BV.masked_fill(count_B1 == 0, 0.0)
    hits_B = present_BV.gather(1, best_BV.argmax(1, keepdim=True))[:, 0]
    share_BV = present_BV / count_B1.clamp(min=1)
    log_BV = best_BV.log_softmax(1)
    slope_BV = (log_BV.exp() - share_BV) * (count_B1 > 0)
    hits_2 = torch.stack([hits_B.sum(), present_BV[:, most_frequent_id].sum()])
    return -(log_BV * share_BV).sum(), hits_2, slope_BV


def _add_gradients(
    grads: tuple[torch.Tensor, ...],
    slope_BV: torch.Tensor,
    place_BV: torch.Tensor,
    hidden_TD: torch.Tensor,
    weight_VD: torch.Tensor,
    bucket: Bucket,
) -> None:
    """Each slope belongs to the token that its logit came from: a product with a matrix of few entries."""
    grad_TD, grad_VD, grad_V = grads
    grad_V += slope_BV.sum(0)
    for part in _parts(bucket, len(weight_VD), hidden_TD.device):
        position_C = torch.arange(part.start, part.stop, device=place_BV.device)
        here_BCV = place_BV[:, None] == position_C[:, None]
        slope_NV = torch.where(here_BCV, slope_BV[:, None], 0.0).flatten(0, 1).to(hidden_TD.dtype)
        places_N = bucket.places_BL[:, part].flatten()
        grad_TD.index_add_(0, places_N, slope_NV @ weight_VD)
        grad_VD += slope_NV.T @ hidden_TD.index_select(0, places_N)


def _wide(tensor: torch.Tensor) -> torch.dtype:
    """Sums and softmax are at least in fp32."""
    return torch.promote_types(tensor.dtype, torch.float32)
