"""The bounds of the documents in a padding-free sequence.

Legend: T tokens, D documents, N chosen tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, slots=True)
class Documents:
    """D documents laid end to end in T tokens; nothing attends across their bounds.

    Lengths are known on the host, so no shape ever has to be read back from the device.
    """

    lengths_D: np.ndarray  # int64, host
    cu_seqlens_D1: torch.Tensor  # int32, device: document d is [cu[d], cu[d + 1])
    index_T: torch.Tensor  # int64, device: the document of each token
    max_length: int  # kept as a number, because torch.compile cannot take one from a host array

    @classmethod
    def of(cls, lengths_D: np.ndarray, device: torch.device) -> Documents:
        bounds_D1 = np.concatenate([[0], np.cumsum(lengths_D)])
        index_T = np.repeat(np.arange(len(lengths_D)), lengths_D)
        bounds, index = upload(bounds_D1.astype(np.int32), device), upload(index_T, device)
        return cls(lengths_D, bounds, index, int(lengths_D.max()))

    @classmethod
    def bounded(cls, lengths_D: np.ndarray, cu_seqlens_D1: torch.Tensor) -> Documents:
        """The same from bounds that are on the device already: nothing is uploaded."""
        number_D = torch.arange(len(lengths_D), device=cu_seqlens_D1.device)
        index_T = torch.repeat_interleave(number_D, cu_seqlens_D1.diff(), output_size=int(lengths_D.sum()))
        return cls(lengths_D, cu_seqlens_D1, index_T, int(lengths_D.max()))

    @property
    def tokens(self) -> int:
        return int(self.lengths_D.sum())

    def sums(self, values_T: torch.Tensor) -> torch.Tensor:
        """The sum of each document's integers or flags, int64[D] on the device."""
        total_D = torch.zeros(len(self.lengths_D), dtype=torch.int64, device=values_T.device)
        return total_D.index_add(0, self.index_T, values_T.long())

    @property
    def starts_T(self) -> torch.Tensor:
        """The first token of the document that each token belongs to."""
        return self.cu_seqlens_D1.long()[self.index_T]

    @property
    def positions_T(self) -> torch.Tensor:
        """Positions, which begin again at 0 in every document."""
        return torch.arange(len(self.index_T), device=self.index_T.device) - self.starts_T


def upload(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A host array on the device, without holding up the host on a GPU."""
    tensor = torch.from_numpy(array)
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
