"""Owns the layout of micro-batches: where each token comes from and where it goes, known from the plan alone.

Legend: T tokens, D documents (pieces with their [CLS] and [SEP]), M rows of a micro-batch, A micro-batches, N rows of
all of them.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from train.data.order import FILLER_ROW, Indices
from train.data.packing import SPECIALS_PER_PIECE, RowPlan

NO_BLOCK = -1  # of a filler


@dataclass(frozen=True, slots=True)
class Layout:
    """One micro-batch. A filler row is one document without ordinary tokens."""

    row_ids_M: Indices  # FILLER_ROW for a filler
    block_M: list[int]  # of each row
    block_D: list[int]  # of each document
    start_D: Indices  # first ordinary token in its block
    lengths_D: Indices  # [CLS] and [SEP] included
    bounds_D1: Indices  # where each document begins in the micro-batch
    row_bounds_M1: Indices
    row_ids_D: Indices
    row_offsets_D: Indices  # tokens of the row before the document
    damaged: int  # fillers in place of rows that cannot be read


def lay_out(row_ids_AM: Indices, plan: RowPlan) -> list[Layout]:
    """The layouts of A micro-batches, made at once: numpy's calls would cost more than their work.

    A row of a block that could not be planned becomes a filler, and is counted as damaged.
    """
    row_N = row_ids_AM.ravel()
    first_piece_N = plan.row_pieces_R1[row_N]
    documents_N = plan.row_pieces_R1[row_N + 1] - first_piece_N
    filler_N = documents_N <= 0  # below 0 for row -1: from the end of the last row to the beginning of the first
    document_N1 = bounds(np.maximum(documents_N, 1))
    slot_D = np.repeat(np.arange(len(row_N)), np.diff(document_N1))
    piece_D = np.arange(len(slot_D)) + (first_piece_N - document_N1[:-1])[slot_D]
    start_D, lengths_D = _pieces(plan, piece_D, filler_N[slot_D])
    kept_N, block_N = np.where(filler_N, FILLER_ROW, row_N), np.where(filler_N, NO_BLOCK, plan.blocks_of(row_N))
    all_rows = Layout(
        row_ids_M=kept_N,
        block_M=block_N.tolist(),
        block_D=block_N[slot_D].tolist(),
        start_D=start_D,
        lengths_D=lengths_D,
        bounds_D1=(bounds_D1 := bounds(lengths_D)),
        row_bounds_M1=bounds_D1[document_N1],
        row_ids_D=kept_N[slot_D],
        row_offsets_D=bounds_D1[:-1] - bounds_D1[document_N1[slot_D]],
        damaged=0,
    )
    damaged_A = (kept_N != row_N).reshape(row_ids_AM.shape).sum(1).tolist()
    rows = row_ids_AM.shape[1]
    first_document_A1 = document_N1[::rows].tolist()
    return [
        _part(all_rows, slice(number * rows, (number + 1) * rows), slice(*first_document_A1[number : number + 2]), lost)
        for number, lost in enumerate(damaged_A)
    ]


def without(layout: Layout, plan: RowPlan, blocks: set[int]) -> Layout:
    """The layout with fillers in place of the rows of these blocks, which count as damaged."""
    lost_M = np.array([block in blocks for block in layout.block_M])
    [other] = lay_out(np.where(lost_M, FILLER_ROW, layout.row_ids_M)[None], plan)
    return replace(other, damaged=layout.damaged + int(np.count_nonzero(lost_M)))


def bounds(counts_N: npt.NDArray[np.integer]) -> Indices:
    """Where each of N things begins that have so many parts, and the end of the last: [N + 1]."""
    bounds_N1 = np.zeros(len(counts_N) + 1, np.int64)
    np.cumsum(counts_N, out=bounds_N1[1:])
    return bounds_N1


def _pieces(plan: RowPlan, piece_D: Indices, filler_D: npt.NDArray[np.bool_]) -> tuple[Indices, Indices]:
    """First token in its block, and length with [CLS] and [SEP], of each document."""
    start_D = np.zeros(len(piece_D), np.int64)
    lengths_D = np.full(len(piece_D), SPECIALS_PER_PIECE, np.int64)
    real_D = ~filler_D
    start_D[real_D] = plan.piece_start_P[piece_D[real_D]]
    lengths_D[real_D] += plan.piece_length_P[piece_D[real_D]]
    return start_D, lengths_D


def _part(whole: Layout, rows: slice, documents: slice, damaged: int) -> Layout:
    """Some rows of a layout, whose documents these are."""
    first = whole.bounds_D1[documents.start]
    return Layout(
        row_ids_M=whole.row_ids_M[rows],
        block_M=whole.block_M[rows],
        block_D=whole.block_D[documents],
        start_D=whole.start_D[documents],
        lengths_D=whole.lengths_D[documents],
        bounds_D1=whole.bounds_D1[documents.start : documents.stop + 1] - first,
        row_bounds_M1=whole.row_bounds_M1[rows.start : rows.stop + 1] - first,
        row_ids_D=whole.row_ids_D[documents],
        row_offsets_D=whole.row_offsets_D[documents],
        damaged=damaged,
    )
