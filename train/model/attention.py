"""Padding-free attention: each document attends to itself alone, for transformers' encoders and for our decoder.

Legend: T tokens (queries), S tokens (keys), H heads, W width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from train.model.cpu_bf16 import lacks_bf16
from train.model.document_products import document_products, opaque_document_products
from train.model.documents import Documents

NAME = "bertmae_documents"


def document_attention(
    query_THW: torch.Tensor,
    key_SHW: torch.Tensor,
    value_SHW: torch.Tensor,
    documents: Documents,
    scale: float | None = None,
    *,
    key_documents: Documents | None = None,
    causal: bool = False,
    window: int | None = None,
) -> torch.Tensor:
    """Softmax attention within each document; the result is [T, H, W].

    Query i of a document sees all its keys; with `causal` keys j <= i; with `window` keys |i - j| < window. i and j
    count the tokens that are there: where an objective dropped some, a window reaches further back in the text, as
    it does in transformers on the shorter sequence.
    `key_documents` bounds the keys where they are other tokens than the queries (cross-attention): as many documents,
    each of any length; neither causal nor window is defined there. Scores are times `scale`, or 1 / sqrt(W).

    FlashAttention through torch's own variable-length kernel on a GPU in half precision; elsewhere one scaled dot
    product per document, which on a CPU is faster than scattering the tokens into a padded batch.
    """
    if key_documents is not None and (causal or window is not None):
        raise ValueError("causal and windowed attention need queries and keys of the same tokens")
    keys = documents if key_documents is None else key_documents
    device = query_THW.device.type
    if torch.is_autocast_enabled(device):  # rotations may be fp32 there, for which the kernel below is none
        dtype = torch.get_autocast_dtype(device)
        query_THW, key_SHW, value_SHW = query_THW.to(dtype), key_SHW.to(dtype), value_SHW.to(dtype)
    if query_THW.is_cuda and query_THW.dtype in (torch.bfloat16, torch.float16):
        return _flash(query_THW, key_SHW, value_SHW, documents, keys, scale, causal, window)
    dtype = query_THW.dtype
    if not query_THW.is_cuda and dtype == torch.bfloat16 and lacks_bf16():
        query_THW, key_SHW, value_SHW = query_THW.float(), key_SHW.float(), value_SHW.float()
    tensors = query_THW, key_SHW, value_SHW
    if torch.compiler.is_compiling():
        bounds = documents.cu_seqlens_D1, keys.cu_seqlens_D1
        mixed_THW: torch.Tensor = opaque_document_products(*tensors, *bounds, scale, causal, window)
        return mixed_THW.to(dtype)
    lengths = documents.lengths_D.tolist(), keys.lengths_D.tolist()
    return document_products(*tensors, *lengths, scale, causal, window).to(dtype)


def _flash(
    query_THW: torch.Tensor,
    key_SHW: torch.Tensor,
    value_SHW: torch.Tensor,
    documents: Documents,
    keys: Documents,
    scale: float | None,
    causal: bool,
    window: int | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel's window is what is seen beside the token itself, to the left and to the right; -1 is everything.
    left = -1 if window is None else window - 1
    return varlen_attn(  # type: ignore[return-value]
        query_THW,
        key_SHW,
        value_SHW,
        documents.cu_seqlens_D1,
        keys.cu_seqlens_D1,
        documents.max_length,
        keys.max_length,
        scale=scale,
        window_size=(left, 0 if causal else left),
    )


def _transformers_attention(
    module: torch.nn.Module,
    query_1HTW: torch.Tensor,
    key_1HTW: torch.Tensor,
    value_1HTW: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    documents: Documents,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The signature transformers calls; the answer is [1, T, H, W].

    Grouped keys and values (fewer heads than queries) are repeated. `sliding_window` is the `window` of our own
    function: ModernBERT passes half of `local_attention`, plus one.
    """
    if dropout:
        raise ValueError(f"padding-free attention has no dropout, the model asks for {dropout}")
    shared = query_1HTW.shape[1] // key_1HTW.shape[1]
    if shared > 1:
        key_1HTW, value_1HTW = (x.repeat_interleave(shared, dim=1) for x in (key_1HTW, value_1HTW))
    query_THW, key_THW, value_THW = (x[0].transpose(0, 1) for x in (query_1HTW, key_1HTW, value_1HTW))
    mixed_THW = document_attention(query_THW, key_THW, value_THW, documents, scaling, window=sliding_window)
    return mixed_THW[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Document bounds travel beside the tokens, so no mask tensor is ever built."""


AttentionInterface.register(NAME, _transformers_attention)
AttentionMaskInterface.register(NAME, _no_mask)
