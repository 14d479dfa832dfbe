"""Owns the packing plan: documents cut into pieces, pieces packed into rows, known from document lengths alone.

Legend: D documents of a block, P pieces, R rows. Positions count ordinary tokens of a block; a row's budget counts
[CLS] and [SEP] too.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from train.data.reader import ShardReader

SPECIALS_PER_PIECE = 2


@dataclass(frozen=True, slots=True)
class RowPlan:
    """What each row holds: row r is pieces [row_pieces_R1[r], row_pieces_R1[r + 1]), all of block row_block_R[r]."""

    sequence_length: int
    row_block_R: npt.NDArray[np.int32]
    row_pieces_R1: npt.NDArray[np.int64]
    piece_start_P: npt.NDArray[np.uint32]
    piece_length_P: npt.NDArray[np.int32]
    tokens: int

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_block_R)

    @property
    def padding_share(self) -> float:
        """Share of rows x sequence_length that no token fills; `tokens` counts [CLS] and [SEP] as filled."""
        return 1 - self.tokens / (self.rows * self.sequence_length) if self.rows else 0.0


def plan_rows(manifest: Manifest, split: str, sequence_length: int, max_rows: int | None = None) -> RowPlan:
    """Plan every row of a split, or, given `max_rows`, only as many whole blocks as reach that many rows.

    Rows stand in the order of the text, so the first rows are no special kind. Raises UserError for a
    sequence_length without room for an ordinary token or an unknown split, DataError for a damaged block.
    """
    if sequence_length <= SPECIALS_PER_PIECE:
        raise UserError(f"sequence_length {sequence_length} leaves no room between [CLS] and [SEP]; use 8 or more")
    reader = ShardReader(manifest, split)
    blocks = []
    rows = 0
    for number in range(reader.blocks):
        if max_rows is not None and rows >= max_rows:
            break
        blocks.append(_plan_block(reader.block(number).offsets_D1, sequence_length))
        rows += len(blocks[-1].pieces_R)
    return _join(blocks, sequence_length)


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    pieces_R: npt.NDArray[np.int64]  # pieces of each row
    start_P: npt.NDArray[np.uint32]
    length_P: npt.NDArray[np.int32]


def _plan_block(offsets_D1: npt.NDArray[np.uint32], sequence_length: int) -> _BlockPlan:
    start_P, length_P = cut_documents(offsets_D1.astype(np.int64), sequence_length - SPECIALS_PER_PIECE)
    row_P = pack_pieces(length_P + SPECIALS_PER_PIECE, sequence_length)
    by_row = np.argsort(row_P, kind="stable")
    return _BlockPlan(np.bincount(row_P), start_P[by_row].astype(np.uint32), length_P[by_row].astype(np.int32))


def _join(blocks: list[_BlockPlan], sequence_length: int) -> RowPlan:
    pieces_R = np.concatenate([np.empty(0, np.int64), *(block.pieces_R for block in blocks)])
    length_P = np.concatenate([np.empty(0, np.int32), *(block.length_P for block in blocks)])
    rows_of_block = np.array([len(block.pieces_R) for block in blocks], dtype=np.int64)
    return RowPlan(
        sequence_length=sequence_length,
        row_block_R=np.repeat(np.arange(len(blocks), dtype=np.int32), rows_of_block),
        row_pieces_R1=np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces_R)]),
        piece_start_P=np.concatenate([np.empty(0, np.uint32), *(block.start_P for block in blocks)]),
        piece_length_P=length_P,
        tokens=int(length_P.sum(dtype=np.int64)) + SPECIALS_PER_PIECE * len(length_P),
    )


def cut_documents(
    offsets_D1: npt.NDArray[np.int64], piece_length: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Cut each document into full pieces of `piece_length` tokens and the rest; (start_P, length_P) in text order."""
    start_D, length_D = offsets_D1[:-1], np.diff(offsets_D1)
    pieces_D = -(-length_D // piece_length)
    first_piece_D = np.cumsum(pieces_D) - pieces_D
    within_P = (np.arange(pieces_D.sum()) - np.repeat(first_piece_D, pieces_D)) * piece_length
    start_P = np.repeat(start_D, pieces_D) + within_P
    length_P = np.minimum(np.repeat(length_D, pieces_D) - within_P, piece_length)
    return start_P, length_P


def pack_pieces(cost_P: npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int64]:
    """Best-fit-decreasing packing: the row of each piece, rows numbered by their first piece.

    Costs lie in [1, capacity]. Pieces of equal cost are placed together, so that the work grows with the number of
    different costs rather than with the number of pieces.
    """
    by_cost = np.argsort(-cost_P, kind="stable")
    sorted_row_P = _best_fit_decreasing(cost_P[by_cost], capacity)
    row_P = np.empty_like(sorted_row_P)
    row_P[by_cost] = sorted_row_P
    _, first_piece_R, row_P = np.unique(row_P, return_index=True, return_inverse=True)
    rank_R = np.empty_like(first_piece_R)
    rank_R[np.argsort(first_piece_R)] = np.arange(len(first_piece_R))
    return rank_R[row_P]


def _best_fit_decreasing(falling_cost_P: npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int64]:
    row_P = np.empty(len(falling_cost_P), dtype=np.int64)
    rows_by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit n is set where rows_by_room[n] is not empty
    rows = placed = 0
    rising_costs, counts = np.unique(falling_cost_P, return_counts=True)
    for cost, count in zip(rising_costs[::-1].tolist(), counts[::-1].tolist(), strict=True):
        end = placed + count
        while placed < end:
            fitting = rooms >> cost
            if not fitting:
                opened = -(-(end - placed) // (capacity // cost))
                rows_by_room[capacity].extend(range(rows, rows + opened))
                rows += opened
                room = capacity
            else:
                room = cost + (fitting & -fitting).bit_length() - 1
            # The fullest row that fits stays the fullest after taking a piece, so it takes as many as it has room for.
            per_row = min(room // cost, end - placed)
            taken = min(len(rows_by_room[room]), (end - placed) // per_row)
            chosen = rows_by_room[room][-taken:]
            del rows_by_room[room][-taken:]
            row_P[placed : placed + taken * per_row] = np.repeat(chosen, per_row)
            placed += taken * per_row
            left = room - per_row * cost
            rows_by_room[left].extend(chosen)
            rooms |= 1 << left | 1 << room
            if not rows_by_room[room]:
                rooms ^= 1 << room
    return row_P
