"""Documents of similar length side by side in padded groups, for what needs a rectangle: a mask for every query.

Legend: T tokens, D documents, B documents of a bucket, L their padded length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from train.model.documents import Documents, upload

_SHORTEST = 16  # padded tokens: shorter rows fill no tile of a GPU


@dataclass(frozen=True, slots=True)
class Bucket:
    """Some documents of a batch as a rectangle."""

    places_BL: torch.Tensor  # int64: where each token stands in the batch; padding repeats the document's last token
    real_BL: torch.Tensor  # bool: False at padding


@dataclass(frozen=True, slots=True)
class Buckets:
    """All documents of a batch, each in one bucket."""

    groups: list[Bucket]
    slots_T: torch.Tensor  # int64: the place of each token among those of all groups end to end, with their padding

    @classmethod
    def of(cls, documents: Documents, most: Callable[[int], int]) -> Buckets:
        """Lengths padded to powers of two; `most(L)` documents of padded length L share a bucket.

        Shapes follow from lengths that the host knows, so nothing waits for the device.
        """
        device = documents.index_T.device
        lengths_D = documents.lengths_D
        padded_D = np.maximum(_SHORTEST, 1 << np.ceil(np.log2(lengths_D)).astype(np.int64))
        order_D = np.argsort(padded_D, kind="stable")
        numbers_D, groups = upload(order_D, device), []
        for first, last in _groups(padded_D[order_D], most):
            groups.append(_bucket(documents, numbers_D[first:last], int(padded_D[order_D[first]])))
        before_D = np.empty_like(padded_D)
        before_D[order_D] = np.cumsum(padded_D[order_D]) - padded_D[order_D]
        slots_T = upload(before_D, device)[documents.index_T] + documents.positions_T
        return cls(groups, slots_T)


def _groups(padded_D: np.ndarray, most: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """[first, last) of each run of equal lengths, in parts of at most `most(length)`."""
    widths, firsts, counts = np.unique(padded_D, return_index=True, return_counts=True)
    for width, first, count in zip(widths.tolist(), firsts.tolist(), counts.tolist(), strict=True):
        part = max(1, most(width))
        for start in range(first, first + count, part):
            yield start, min(start + part, first + count)


def _bucket(documents: Documents, numbers_B: torch.Tensor, padded: int) -> Bucket:
    bounds_D1 = documents.cu_seqlens_D1.long()
    starts_B, ends_B = bounds_D1[numbers_B], bounds_D1[numbers_B + 1]
    places_BL = starts_B[:, None] + torch.arange(padded, device=starts_B.device)
    return Bucket(places_BL.minimum(ends_B[:, None] - 1), places_BL < ends_B[:, None])
