"""Owns the padding-free micro-batch: rows of the plan gathered from blocks, [CLS] and [SEP] around each piece.

Legend: T tokens, D documents (pieces with their [CLS] and [SEP]), M rows of the micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from train.data.order import FILLER_ROW
from train.data.packing import SPECIALS_PER_PIECE, RowPlan
from train.data.reader import BlockArrays, ShardReader

_MANY_PIECES = 4  # of a row
_Type = TypeVar("_Type", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Batch:
    """One padding-free micro-batch: documents one after another, none attending to another."""

    ids_T: torch.Tensor  # int64 once moved to a device; before, as stored: uint16 or uint32
    word_starts_T: torch.Tensor  # bool; True at [CLS], [SEP] and the first token of a piece as well
    lengths_D: npt.NDArray[np.int64]  # tokens of each document, [CLS] and [SEP] included; stays on the host
    cu_seqlens_D1: torch.Tensor  # int32; document d is ids_T[cu_seqlens_D1[d] : cu_seqlens_D1[d + 1]]
    row_ids_D: torch.Tensor  # int64; row of each document, -1 for a filler
    row_offsets_D: torch.Tensor  # int64; tokens of the row before the document
    epoch: int
    tokens: int  # tokens of real rows, [CLS] and [SEP] included
    rows: int = 0  # that are no fillers; damaged ones included
    damaged_rows: int = 0  # that could not be read and stand here as fillers

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; copies from pinned memory run beside the computation."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids_T=move(self.ids_T).long(),  # a quarter of the bytes travels
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


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows as they were read, one after another; rows of several data sets join into one batch."""

    ids_T: npt.NDArray[np.generic]
    word_starts_T: npt.NDArray[np.bool_]
    lengths_D: npt.NDArray[np.int64]
    row_ids_D: npt.NDArray[np.int64]
    row_offsets_D: npt.NDArray[np.int64]
    rows: int
    fillers: int  # among the rows; damaged ones included
    damaged: int  # rows that could not be read


def make_batch(
    row_ids_M: npt.NDArray[np.int64], plan: RowPlan, reader: ShardReader, special_ids: Mapping[str, int], epoch: int
) -> Batch:
    """Gather rows of one data set into a micro-batch."""
    return join_rows([read_rows(row_ids_M, plan, reader, special_ids)], epoch)


def read_rows(
    row_ids_M: npt.NDArray[np.int64], plan: RowPlan, reader: ShardReader, special_ids: Mapping[str, int]
) -> ReadRows:
    """Gather rows with [CLS] and [SEP] around each piece.

    A filler row (-1) becomes one document [CLS] [SEP]: it has no ordinary token, so no target, and counts nowhere. So
    does a row of a damaged block, which is counted as well.
    """
    blocks_M = _blocks(row_ids_M, plan, reader)
    sound_M = np.array([block is not None for block in blocks_M], dtype=np.bool_)
    damaged = int(np.count_nonzero(row_ids_M[~sound_M] != FILLER_ROW))
    row_ids_M = np.where(sound_M, row_ids_M, FILLER_ROW)
    layout = _lay_out(row_ids_M, plan)
    ids_T, word_starts_T = _gather(blocks_M, layout, reader.token_dtype)
    first_D, last_D = layout.bounds_D1[:-1], layout.bounds_D1[1:] - 1
    ids_T[first_D], ids_T[last_D] = special_ids["cls"], special_ids["sep"]
    # A long document may be cut within a word: the tail then is a word of its own, not a part of the word [CLS].
    # In a filler the token after [CLS] is [SEP].
    word_starts_T[first_D] = word_starts_T[first_D + 1] = word_starts_T[last_D] = True
    row_offsets_D = first_D - layout.row_bounds_M1[layout.slot_D]
    fillers = int(np.count_nonzero(~sound_M))
    return ReadRows(
        ids_T,
        word_starts_T,
        layout.lengths_D,
        row_ids_M[layout.slot_D],
        row_offsets_D,
        rows=len(row_ids_M),
        fillers=fillers,
        damaged=damaged,
    )


def join_rows(parts: Sequence[ReadRows], epoch: int) -> Batch:
    """One micro-batch of all these rows, in pinned memory where there is CUDA."""
    lengths_D = _joined([part.lengths_D for part in parts])
    fillers, damaged = sum(part.fillers for part in parts), sum(part.damaged for part in parts)
    return Batch(
        ids_T=_tensor(_joined([part.ids_T for part in parts])),
        word_starts_T=_tensor(_joined([part.word_starts_T for part in parts])),
        lengths_D=lengths_D,
        cu_seqlens_D1=_tensor(_bounds(lengths_D).astype(np.int32)),
        row_ids_D=_tensor(_joined([part.row_ids_D for part in parts])),
        row_offsets_D=_tensor(_joined([part.row_offsets_D for part in parts])),
        epoch=epoch,
        tokens=int(lengths_D.sum()) - fillers * SPECIALS_PER_PIECE,
        rows=sum(part.rows for part in parts) - fillers + damaged,
        damaged_rows=damaged,
    )


def _blocks(row_ids_M: npt.NDArray[np.int64], plan: RowPlan, reader: ShardReader) -> list[BlockArrays | None]:
    """The block of each row; None for a filler and for what is damaged."""
    row_N = row_ids_M[row_ids_M != FILLER_ROW]
    block_N = plan.blocks_of(row_N)
    empty_N = plan.row_pieces_R1[row_N] == plan.row_pieces_R1[row_N + 1]  # the block could not be planned
    found = {block: reader.sound_block(block) for block in set(block_N[~empty_N].tolist())}
    blocks = iter([None if empty else found[b] for b, empty in zip(block_N.tolist(), empty_N.tolist(), strict=True)])
    return [None if row == FILLER_ROW else next(blocks) for row in row_ids_M.tolist()]


def _lay_out(row_ids_M: npt.NDArray[np.int64], plan: RowPlan) -> _Layout:
    filler_M = row_ids_M == FILLER_ROW
    first_piece_M = np.where(filler_M, 0, plan.row_pieces_R1[row_ids_M])
    documents_M = np.where(filler_M, 1, plan.row_pieces_R1[row_ids_M + 1] - first_piece_M)
    first_document_M1 = _bounds(documents_M)
    slot_D = np.repeat(np.arange(len(row_ids_M)), documents_M)
    piece_D = np.arange(len(slot_D)) + (first_piece_M - first_document_M1[:-1])[slot_D]
    ordinary_D, start_D = np.zeros(len(slot_D), np.int64), np.zeros(len(slot_D), np.int64)
    real_D = ~filler_M[slot_D]
    ordinary_D[real_D] = plan.piece_length_P[piece_D[real_D]]
    start_D[real_D] = plan.piece_start_P[piece_D[real_D]]
    lengths_D = ordinary_D + SPECIALS_PER_PIECE
    bounds_D1 = _bounds(lengths_D)
    return _Layout(slot_D, start_D, lengths_D, bounds_D1, bounds_D1[first_document_M1])


def _gather(
    blocks_M: list[BlockArrays | None], layout: _Layout, token_dtype: np.dtype[np.generic]
) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Ids and word starts (T) of all ordinary tokens; what stands at [CLS] and [SEP] is left to the caller."""
    ids_T = np.zeros(int(layout.bounds_D1[-1]), dtype=token_dtype)
    word_starts_T = np.zeros(len(ids_T), dtype=np.bool_)
    copy = _copy_pieces if len(layout.slot_D) < _MANY_PIECES * len(blocks_M) else _copy_tokens
    copy(blocks_M, layout, ids_T, word_starts_T)
    return ids_T, word_starts_T


def _copy_pieces(
    blocks_M: list[BlockArrays | None],
    layout: _Layout,
    ids_T: npt.NDArray[np.generic],
    word_starts_T: npt.NDArray[np.bool_],
) -> None:
    """Piece by piece: the faster way where pieces are long."""
    starts_T = word_starts_T.view(np.uint8)
    bounds_D1 = layout.bounds_D1.tolist()
    pieces = zip(layout.slot_D.tolist(), layout.start_D.tolist(), pairwise(bounds_D1), strict=True)
    for slot, start, (before, after) in pieces:
        block = blocks_M[slot]
        if block is not None:
            first, end = before + 1, after - 1
            stop = start + end - first
            ids_T[first:end] = block.ids_T[start:stop]
            bits = np.unpackbits(block.word_bits[start >> 3 : (stop + 7) >> 3], bitorder="little")
            starts_T[first:end] = bits[start & 7 : (start & 7) + stop - start]


def _copy_tokens(
    blocks_M: list[BlockArrays | None],
    layout: _Layout,
    ids_T: npt.NDArray[np.generic],
    word_starts_T: npt.NDArray[np.bool_],
) -> None:
    """Row by row, by the place of each token: the faster way where a row has many short pieces."""
    source_T = np.arange(len(ids_T)) + np.repeat(layout.start_D - 1 - layout.bounds_D1[:-1], layout.lengths_D)
    byte_T = source_T >> 3
    bits_T = np.zeros(len(ids_T), dtype=np.uint8)
    bound_M1 = layout.row_bounds_M1.tolist()
    for slot, block in enumerate(blocks_M):
        if block is not None:
            span = slice(bound_M1[slot], bound_M1[slot + 1])
            # "clip" only concerns [CLS] and [SEP], whose source lies one token before and after the piece.
            block.ids_T.take(source_T[span], mode="clip", out=ids_T[span])
            block.word_bits.take(byte_T[span], mode="clip", out=bits_T[span])
    np.bitwise_and(bits_T >> (source_T & 7).astype(np.uint8), 1, out=word_starts_T.view(np.uint8))


def _bounds(counts_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts_N)])


def _joined(arrays: list[npt.NDArray[_Type]]) -> npt.NDArray[_Type]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
