"""Scaled dot products one document after another: the path of processors, and of GPUs in full precision.

Under torch.compile they are an operator that the compiler does not look into, because their number and shapes are those
of the documents.

Legend: T query tokens, S key tokens, D documents, H heads, W width of a head, t and s: those of one document or band.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

_BAND = 64  # queries of a local layer that share a product: of 64 to 512 the fastest for documents up to 1,024 tokens

Triple = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def document_products(
    query_THW: torch.Tensor,
    key_SHW: torch.Tensor,
    value_SHW: torch.Tensor,
    lengths_D: list[int],
    key_lengths_D: list[int],
    scale: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """Attention of each document's queries to its keys; the result is [T, H, W]."""
    pieces = zip(
        query_THW.transpose(0, 1).split(lengths_D, dim=1),
        key_SHW.transpose(0, 1).split(key_lengths_D, dim=1),
        value_SHW.transpose(0, 1).split(key_lengths_D, dim=1),
        strict=True,
    )
    outputs = [part for piece in pieces for part in _one_document(*piece, scale, causal, window)]
    return torch.cat(outputs, dim=1).transpose(0, 1)


def _one_document(
    query_HtW: torch.Tensor,
    key_HsW: torch.Tensor,
    value_HsW: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> Iterator[torch.Tensor]:
    """The outputs of one document, in bands of queries where the window is shorter than the document."""
    # A batch dimension of one: the kernel that is fast on CPU takes only four dimensions.
    query, key, value = query_HtW[None], key_HsW[None], value_HsW[None]
    if window is None or window >= query.shape[2]:
        yield F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scale)[0]
        return
    for rows, columns in _bands(query.shape[2], key.shape[2], causal, window):
        mask_ts = _seen(rows, columns, causal, window, query.device)
        band = query[:, :, rows], key[:, :, columns], value[:, :, columns]
        yield F.scaled_dot_product_attention(*band, attn_mask=mask_ts, scale=scale)[0]


def _bands(length: int, key_length: int, causal: bool, window: int | None) -> Iterator[tuple[slice, slice]]:
    """(queries, the keys that any of them sees) of one document."""
    if window is None or window >= length:
        yield slice(0, length), slice(0, key_length)
        return
    for start in range(0, length, _BAND):
        stop = min(start + _BAND, length)
        yield slice(start, stop), slice(max(0, start - window + 1), stop if causal else min(length, stop + window - 1))


def _seen(rows: slice, columns: slice, causal: bool, window: int | None, device: torch.device) -> torch.Tensor:
    """True where query i of `rows` sees key j of `columns`."""
    i_t, j_s = (torch.arange(part.start, part.stop, device=device) for part in (rows, columns))
    distance_ts = i_t[:, None] - j_s
    seen_ts = distance_ts >= 0 if causal else torch.ones_like(distance_ts, dtype=torch.bool)
    return seen_ts if window is None else seen_ts & (distance_ts.abs() < window)


# ---------------------------------------------------------------------------------------------------------------------
# The same as an operator for torch.compile, which takes the documents' bounds as tensors. Autograd cannot look into an
# operator either, so its gradient is written out.


@torch.library.custom_op("bertmae::document_products", mutates_args=())
def opaque_document_products(
    query_THW: torch.Tensor,
    key_SHW: torch.Tensor,
    value_SHW: torch.Tensor,
    bounds_D1: torch.Tensor,
    key_bounds_D1: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    """`document_products` of the documents in [bounds[d], bounds[d + 1]); bounds on a GPU are read back."""
    lengths = bounds_D1.diff().tolist(), key_bounds_D1.diff().tolist()
    return document_products(query_THW, key_SHW, value_SHW, *lengths, scale, causal, window).contiguous()


@opaque_document_products.register_fake
def _(query_THW: torch.Tensor, *_: Any) -> torch.Tensor:
    return torch.empty_like(query_THW, memory_format=torch.contiguous_format)


@torch.library.custom_op("bertmae::document_products_backward", mutates_args=())
def _gradients(
    gradient_THW: torch.Tensor,
    query_THW: torch.Tensor,
    key_SHW: torch.Tensor,
    value_SHW: torch.Tensor,
    bounds_D1: torch.Tensor,
    key_bounds_D1: torch.Tensor,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> Triple:
    """Gradients of queries, keys and values, in the layout of the inputs but without gaps."""
    sums = [
        torch.zeros_like(x, dtype=_wide(x.dtype), memory_format=torch.contiguous_format)
        for x in (query_THW, key_SHW, value_SHW)
    ]
    scale = query_THW.shape[-1] ** -0.5 if scale is None else scale
    bounds, key_bounds = bounds_D1.tolist(), key_bounds_D1.tolist()
    for start, stop, first, last in zip(bounds, bounds[1:], key_bounds, key_bounds[1:], strict=False):
        for rows, columns in _bands(stop - start, last - first, causal, window):
            seen_ts = _seen(rows, columns, causal, window, query_THW.device)
            own, other = _moved(rows, start), _moved(columns, first)
            parts = _band_gradients(
                *(_heads_first(x[own]) for x in (gradient_THW, query_THW)),
                *(_heads_first(x[other]) for x in (key_SHW, value_SHW)),
                seen_ts=seen_ts,
                scale=scale,
            )
            for total, place, part_HtW in zip(sums, (own, other, other), parts, strict=True):
                total[place] += part_HtW.transpose(0, 1)
    query, key, value = (x.to(query_THW.dtype) for x in sums)
    return query, key, value


def _band_gradients(
    gradient_HtW: torch.Tensor,
    query_HtW: torch.Tensor,
    key_HsW: torch.Tensor,
    value_HsW: torch.Tensor,
    *,
    seen_ts: torch.Tensor,
    scale: float,
) -> Triple:
    """The gradient of softmax(scale q k') v, from its definition."""
    scores_Hts = scale * query_HtW @ key_HsW.transpose(1, 2)
    share_Hts = scores_Hts.masked_fill(~seen_ts, -torch.inf).softmax(-1)
    share_gradient_Hts = gradient_HtW @ value_HsW.transpose(1, 2)
    centre_Ht1 = (share_gradient_Hts * share_Hts).sum(-1, keepdim=True)
    score_gradient_Hts = scale * share_Hts * (share_gradient_Hts - centre_Ht1)
    return (
        score_gradient_Hts @ key_HsW,
        score_gradient_Hts.transpose(1, 2) @ query_HtW,
        share_Hts.transpose(1, 2) @ gradient_HtW,
    )


def _moved(part: slice, start: int) -> slice:
    return slice(part.start + start, part.stop + start)


def _heads_first(x_tHW: torch.Tensor) -> torch.Tensor:
    return x_tHW.to(_wide(x_tHW.dtype)).transpose(0, 1)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Sums of half-precision numbers are kept in fp32, as the fused kernels do."""
    return torch.promote_types(dtype, torch.float32)


@_gradients.register_fake
def _(_: torch.Tensor, *inputs: Any) -> Triple:
    query, key, value = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])
    return query, key, value


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.settings = inputs[5:]


def _backward(ctx: Any, gradient_THW: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    return (*_gradients(gradient_THW, *ctx.saved_tensors, *ctx.settings), *[None] * 5)


opaque_document_products.register_autograd(_backward, setup_context=_save)
