"""Padding-free attention: each document attends to itself alone, for transformers' encoders and for our decoder.

Legend: T tokens, H heads, W width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from train.model.cpu_bf16 import lacks_bf16
from train.model.documents import Documents

NAME = "bertmae_documents"


def document_attention(
    query_THW: torch.Tensor,
    key_THW: torch.Tensor,
    value_THW: torch.Tensor,
    documents: Documents,
    scale: float | None = None,
) -> torch.Tensor:
    """Softmax attention within each document; the result is [T, H, W].

    FlashAttention through torch's own variable-length kernel on a GPU in half precision; elsewhere one scaled dot
    product per document, which on a CPU is faster than scattering the tokens into a padded batch.
    """
    if query_THW.is_cuda and query_THW.dtype in (torch.bfloat16, torch.float16):
        return _flash(query_THW, key_THW, value_THW, documents, scale)
    dtype = query_THW.dtype
    if not query_THW.is_cuda and dtype == torch.bfloat16 and lacks_bf16():
        query_THW, key_THW, value_THW = query_THW.float(), key_THW.float(), value_THW.float()
    lengths = documents.lengths_D.tolist()
    pieces = zip(
        query_THW.transpose(0, 1).split(lengths, dim=1),
        key_THW.transpose(0, 1).split(lengths, dim=1),
        value_THW.transpose(0, 1).split(lengths, dim=1),
        strict=True,
    )
    # A batch dimension of one: the kernel that is fast on CPU takes only four dimensions.
    outputs = [
        F.scaled_dot_product_attention(q_HtW[None], k_HtW[None], v_HtW[None], scale=scale)[0]
        for q_HtW, k_HtW, v_HtW in pieces
    ]
    return torch.cat(outputs, dim=1).transpose(0, 1).to(dtype)


def _flash(
    query_THW: torch.Tensor,
    key_THW: torch.Tensor,
    value_THW: torch.Tensor,
    documents: Documents,
    scale: float | None,
) -> torch.Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = documents.cu_seqlens_D1, documents.max_length
    return varlen_attn(  # type: ignore[return-value]
        query_THW, key_THW, value_THW, bounds, bounds, longest, longest, scale=scale
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
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The signature transformers calls; the answer is [1, T, H, W]."""
    if dropout:
        raise ValueError(f"padding-free attention has no dropout, the model asks for {dropout}")
    query_THW, key_THW, value_THW = (x[0].transpose(0, 1) for x in (query_1HTW, key_1HTW, value_1HTW))
    return document_attention(query_THW, key_THW, value_THW, documents, scaling)[None], None


def _no_mask(*_: Any, **__: Any) -> None:
    """Document bounds travel beside the tokens, so no mask tensor is ever built."""


AttentionInterface.register(NAME, _transformers_attention)
AttentionMaskInterface.register(NAME, _no_mask)
