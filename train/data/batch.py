"""Owns the padding-free micro-batch: rows of the plan gathered from blocks, [CLS] and [SEP] around each piece.

Legend: T tokens, D documents (pieces with their [CLS] and [SEP]), M rows of the micro-batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from train.data.order import FILLER_ROW
from train.data.packing import SPECIALS_PER_PIECE, RowPlan
from train.data.reader import ShardReader


@dataclass(frozen=True, slots=True)
class Batch:
    """One padding-free micro-batch: documents one after another, none attending to another."""

    ids_T: torch.Tensor  # int64
    word_starts_T: torch.Tensor  # bool; True at [CLS], [SEP] and the first token of a piece as well
    lengths_D: npt.NDArray[np.int64]  # tokens of each document, [CLS] and [SEP] included; stays on the host
    cu_seqlens_D1: torch.Tensor  # int32; document d is ids_T[cu_seqlens_D1[d] : cu_seqlens_D1[d + 1]]
    row_ids_D: torch.Tensor  # int64; row of each document, -1 for a filler
    row_offsets_D: torch.Tensor  # int64; tokens of the row before the document
    epoch: int
    tokens: int  # tokens of real rows, [CLS] and [SEP] included

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; copies from pinned memory run beside the computation."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids_T=move(self.ids_T),
            word_starts_T=move(self.word_starts_T),
            cu_seqlens_D1=move(self.cu_seqlens_D1),
            row_ids_D=move(self.row_ids_D),
            row_offsets_D=move(self.row_offsets_D),
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where each document comes from and where it goes."""

    slot_D: npt.NDArray[np.int64]  # row within the micro-batch, in [0, M)
    start_D: npt.NDArray[np.int64]  # first ordinary token in its block
    lengths_D: npt.NDArray[np.int64]
    bounds_D1: npt.NDArray[np.int64]
    row_bounds_M1: npt.NDArray[np.int64]


def make_batch(
    row_ids_M: npt.NDArray[np.int64], plan: RowPlan, reader: ShardReader, special_ids: Mapping[str, int], epoch: int
) -> Batch:
    """Gather rows into a micro-batch, in pinned memory where there is CUDA.

    A filler row (-1) becomes one document [CLS] [SEP]: it has no ordinary token, so no target, and counts nowhere.
    Raises DataError for a damaged block.
    """
    layout = _lay_out(row_ids_M, plan)
    ids_T, word_starts_T = _gather(row_ids_M, layout, plan, reader)
    first_D, last_D = layout.bounds_D1[:-1], layout.bounds_D1[1:] - 1
    ids_T[first_D], ids_T[last_D] = special_ids["cls"], special_ids["sep"]
    # A long document may be cut within a word: the tail then is a word of its own, not a part of the word [CLS].
    # In a filler the token after [CLS] is [SEP].
    word_starts_T[first_D] = word_starts_T[first_D + 1] = word_starts_T[last_D] = True
    fillers = int(np.count_nonzero(row_ids_M == FILLER_ROW))
    return Batch(
        ids_T=_tensor(ids_T),
        word_starts_T=_tensor(word_starts_T),
        lengths_D=layout.lengths_D,
        cu_seqlens_D1=_tensor(layout.bounds_D1.astype(np.int32)),
        row_ids_D=_tensor(row_ids_M[layout.slot_D]),
        row_offsets_D=_tensor(first_D - layout.row_bounds_M1[layout.slot_D]),
        epoch=epoch,
        tokens=len(ids_T) - fillers * SPECIALS_PER_PIECE,
    )


def _lay_out(row_ids_M: npt.NDArray[np.int64], plan: RowPlan) -> _Layout:
    filler_M = row_ids_M == FILLER_ROW
    first_piece_M = np.where(filler_M, 0, plan.row_pieces_R1[row_ids_M])
    documents_M = np.where(filler_M, 1, plan.row_pieces_R1[row_ids_M + 1] - first_piece_M)
    first_document_M1 = _bounds(documents_M)
    slot_D = np.repeat(np.arange(len(row_ids_M)), documents_M)
    piece_D = np.arange(len(slot_D)) + (first_piece_M - first_document_M1[:-1])[slot_D]
    ordinary_D = np.where(filler_M[slot_D], 0, plan.piece_length_P[piece_D])
    lengths_D = ordinary_D.astype(np.int64) + SPECIALS_PER_PIECE
    bounds_D1 = _bounds(lengths_D)
    start_D = plan.piece_start_P[piece_D].astype(np.int64)
    return _Layout(slot_D, start_D, lengths_D, bounds_D1, bounds_D1[first_document_M1])


def _gather(
    row_ids_M: npt.NDArray[np.int64], layout: _Layout, plan: RowPlan, reader: ShardReader
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Ids and word starts (T) of all ordinary tokens; what stands at [CLS] and [SEP] is left to the caller."""
    tokens = int(layout.bounds_D1[-1])
    source_T = np.arange(tokens) + np.repeat(layout.start_D - 1 - layout.bounds_D1[:-1], layout.lengths_D)
    byte_T = source_T >> 3
    ids_T = np.zeros(tokens, dtype=reader.token_dtype)
    bits_T = np.zeros(tokens, dtype=np.uint8)
    block_M, bound_M1 = plan.row_block_R[row_ids_M].tolist(), layout.row_bounds_M1.tolist()
    for slot in np.flatnonzero(row_ids_M != FILLER_ROW).tolist():
        block = reader.block(block_M[slot])
        span = slice(bound_M1[slot], bound_M1[slot + 1])
        # "clip" only concerns [CLS] and [SEP], whose source lies one token before and after the piece.
        block.ids_T.take(source_T[span], mode="clip", out=ids_T[span])
        block.word_bits.take(byte_T[span], mode="clip", out=bits_T[span])
    word_starts_T = (bits_T >> (source_T & 7).astype(np.uint8)) & 1
    return ids_T.astype(np.int64), word_starts_T.astype(np.bool_)


def _bounds(counts_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_N)])


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
