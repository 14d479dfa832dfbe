"""The lengths of the documents that a run trains on, for TensorBoard's tab Histograms.

Legend: P pieces of documents, S pieces of the sample, L lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import histogram_raw

from train.data.order import Indices
from train.data.packing import RowPlan

TAG = "data/document_lengths"
_BINS = 64
_STRETCHES, _STRETCH = 256, 4096  # of a plan that is too large to be read as a whole: 2 MiB of it


def document_lengths(plans: Sequence[RowPlan]) -> Summary:
    """How many documents have how many ordinary tokens, of all plans together.

    Documents longer than a row count as the pieces that they are cut into. Of a plan with more than a million pieces
    the histogram is that of stretches in equal distances, and its counts are those of the sample.
    """
    lengths_S = np.concatenate([_sample(plan) for plan in plans])
    lengths_S = lengths_S if lengths_S.size else np.zeros(1, np.int64)  # no row could be planned
    edges = np.unique(np.linspace(lengths_S.min(), lengths_S.max() + 1, _BINS + 1).astype(np.int64))
    counts, _ = np.histogram(lengths_S, edges)
    return histogram_raw(
        TAG,
        min=float(lengths_S.min()),
        max=float(lengths_S.max()),
        num=int(lengths_S.size),
        sum=float(lengths_S.sum()),
        sum_squares=float((lengths_S**2).sum()),
        bucket_limits=edges[1:].astype(float).tolist(),
        bucket_counts=counts.tolist(),
    )


def _sample(plan: RowPlan) -> Indices:
    length_P = plan.piece_length_P
    if len(length_P) <= _STRETCHES * _STRETCH:
        return length_P.astype(np.int64)
    starts = np.linspace(0, len(length_P) - _STRETCH, _STRETCHES).astype(np.int64).tolist()
    return np.concatenate([length_P[start : start + _STRETCH] for start in starts]).astype(np.int64)
