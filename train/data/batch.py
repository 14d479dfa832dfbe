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

from train.data.layout import NO_BLOCK, Layout, bounds, lay_out, without
from train.data.order import Indices
from train.data.packing import SPECIALS_PER_PIECE, RowPlan
from train.data.reader import BlockArrays, ShardReader

_SHORT_DOCUMENT = 48  # tokens; where the mean is below, going token by token is faster than piece by piece
_NO_TOKENS = memoryview(b"")
_Type = TypeVar("_Type", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Batch:
    """One padding-free micro-batch: documents one after another, none attending to another."""

    ids_T: torch.Tensor  # int64 once moved to a device; before, as stored: uint16 or uint32
    word_starts_T: torch.Tensor | None  # bool; True at [CLS], [SEP] and a piece's first token too; None: not asked for
    lengths_D: npt.NDArray[np.int64]  # tokens of each document, [CLS] and [SEP] included; stays on the host
    cu_seqlens_D1: torch.Tensor  # int32; document d is ids_T[cu_seqlens_D1[d] : cu_seqlens_D1[d + 1]]
    row_ids_D: torch.Tensor  # int64; row of each document, -1 for a filler
    row_offsets_D: torch.Tensor  # int64; tokens of the row before the document
    epoch: int
    tokens: int  # tokens of real rows, [CLS] and [SEP] included
    rows: int = 0  # that are no fillers; damaged ones included
    damaged_rows: int = 0  # that could not be read and stand here as fillers
    flops: int = 0  # operations of the model over its real rows, forward and backward (train/flops.py)

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on `device`; copies from pinned memory run beside the computation."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return replace(
            self,
            ids_T=move(self.ids_T).long(),  # a quarter of the bytes travels
            word_starts_T=None if self.word_starts_T is None else move(self.word_starts_T),
            cu_seqlens_D1=move(self.cu_seqlens_D1),
            row_ids_D=move(self.row_ids_D),
            row_offsets_D=move(self.row_offsets_D),
        )


@dataclass(frozen=True, slots=True)
class ReadRows:
    """Rows as they were read, one after another; rows of several data sets join into one batch."""

    ids_T: npt.NDArray[np.generic]
    word_starts_T: npt.NDArray[np.bool_] | None
    lengths_D: Indices
    row_ids_D: Indices
    row_offsets_D: Indices
    rows: int
    fillers: int  # among the rows; damaged ones included
    damaged: int  # rows that could not be read


def make_batch(
    row_ids_M: Indices,
    plan: RowPlan,
    reader: ShardReader,
    special_ids: Mapping[str, int],
    epoch: int,
    *,
    word_starts: bool = True,
) -> Batch:
    """Gather rows of one data set into a micro-batch."""
    return join_rows([read_rows(row_ids_M, plan, reader, special_ids, word_starts=word_starts)], epoch)


def read_rows(
    row_ids_M: Indices, plan: RowPlan, reader: ShardReader, special_ids: Mapping[str, int], *, word_starts: bool = True
) -> ReadRows:
    """Gather rows with [CLS] and [SEP] around each piece.

    A filler row (-1) becomes one document [CLS] [SEP]: it has no ordinary token, so no target, and counts nowhere. So
    does a row of a damaged block, which is counted as well.
    """
    [layout] = lay_out(row_ids_M[None], plan)
    return read_layout(layout, plan, reader, special_ids, word_starts=word_starts)


def read_layout(
    layout: Layout, plan: RowPlan, reader: ShardReader, special_ids: Mapping[str, int], *, word_starts: bool
) -> ReadRows:
    """`read_rows` for rows that were laid out before."""
    wanted = set(layout.block_M) - {NO_BLOCK}
    blocks = reader.sound_blocks(wanted)
    if len(blocks) < len(wanted):
        layout = without(layout, plan, wanted - blocks.keys())
    by_token = len(layout.lengths_D) * _SHORT_DOCUMENT > layout.bounds_D1[-1]
    gather = _take_tokens if by_token else _join_pieces
    ids_T, word_starts_T = gather(blocks, layout, reader.token_dtype, word_starts)
    _frame(ids_T, word_starts_T, layout, special_ids)
    return ReadRows(
        ids_T,
        word_starts_T,
        layout.lengths_D,
        layout.row_ids_D,
        layout.row_offsets_D,
        rows=len(layout.block_M),
        fillers=layout.block_M.count(NO_BLOCK),
        damaged=layout.damaged,
    )


def join_rows(parts: Sequence[ReadRows], epoch: int) -> Batch:
    """One micro-batch of all these rows, in pinned memory where there is CUDA."""
    lengths_D, ids_T = _joined([part.lengths_D for part in parts]), _joined([part.ids_T for part in parts])
    fillers, damaged = sum(part.fillers for part in parts), sum(part.damaged for part in parts)
    starts = [part.word_starts_T for part in parts if part.word_starts_T is not None]
    return Batch(
        ids_T=_tensor(ids_T),
        word_starts_T=_tensor(_joined(starts)) if starts else None,
        lengths_D=lengths_D,
        cu_seqlens_D1=_tensor(bounds(lengths_D).astype(np.int32)),
        row_ids_D=_tensor(_joined([part.row_ids_D for part in parts])),
        row_offsets_D=_tensor(_joined([part.row_offsets_D for part in parts])),
        epoch=epoch,
        tokens=len(ids_T) - fillers * SPECIALS_PER_PIECE,
        rows=sum(part.rows for part in parts) - fillers + damaged,
        damaged_rows=damaged,
    )


_Blocks = Mapping[int, BlockArrays]  # by number; NO_BLOCK is not among them
# Ids and word starts (T) of all ordinary tokens; what stands at [CLS] and [SEP] is left to `_frame`.
_Gathered = tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_] | None]


def _join_pieces(blocks: _Blocks, layout: Layout, token_dtype: np.dtype[np.generic], word_starts: bool) -> _Gathered:
    """Piece by piece, as views that one call joins: numpy takes three times as long to put each into its place."""
    ids = {number: block.ids for number, block in blocks.items()}
    ids[NO_BLOCK] = _NO_TOKENS
    stop_D = layout.start_D + layout.lengths_D - SPECIALS_PER_PIECE
    places = zip(layout.block_D, layout.start_D.tolist(), stop_D.tolist(), strict=True)
    ids_T = _join([ids[number][start:stop] for number, start, stop in places], token_dtype)
    return ids_T, _join_word_starts(blocks, layout, stop_D) if word_starts else None


def _join_word_starts(blocks: _Blocks, layout: Layout, stop_D: Indices) -> npt.NDArray[np.bool_]:
    """The bytes that hold the bits of pieces are unpacked all at once; then what belongs to neighbours is left out."""
    words = {number: block.words for number, block in blocks.items()}
    words[NO_BLOCK] = _NO_TOKENS
    first_D, end_D = layout.start_D >> 3, (stop_D + 7) >> 3
    places = zip(layout.block_D, first_D.tolist(), end_D.tolist(), strict=True)
    packed = np.frombuffer(b"".join([words[number][first:end] for number, first, end in places]), np.uint8)
    bits = np.unpackbits(packed, bitorder="little").data
    start_D = 8 * bounds(end_D - first_D)[:-1] + (layout.start_D & 7)
    spans = zip(start_D.tolist(), (start_D + stop_D - layout.start_D).tolist(), strict=True)
    return _join([bits[start:stop] for start, stop in spans], np.dtype(np.bool_))


def _join(pieces: list[memoryview], dtype: np.dtype[_Type]) -> npt.NDArray[_Type]:
    """The pieces one after another, with room for one item before and after each."""
    room = bytearray(SPECIALS_PER_PIECE * dtype.itemsize)
    return np.frombuffer(room.join([b"", *pieces, b""]), dtype)[1:-1]


def _take_tokens(blocks: _Blocks, layout: Layout, token_dtype: np.dtype[np.generic], word_starts: bool) -> _Gathered:
    """Row by row, by the place of each token: the faster way where pieces are short."""
    source_T = np.arange(layout.bounds_D1[-1])
    source_T += np.repeat(layout.start_D - 1 - layout.bounds_D1[:-1], layout.lengths_D)
    spans = [slice(*row) for row in pairwise(layout.row_bounds_M1.tolist())]
    sound = [(blocks[number], span) for number, span in zip(layout.block_M, spans, strict=True) if number in blocks]
    ids_T = np.zeros(len(source_T), dtype=token_dtype)
    for block, span in sound:
        # "clip" only concerns [CLS] and [SEP], whose source lies one token before and after the piece.
        block.ids_T.take(source_T[span], mode="clip", out=ids_T[span])
    if not word_starts:
        return ids_T, None
    byte_T, bits_T = source_T >> 3, np.zeros(len(source_T), dtype=np.uint8)
    for block, span in sound:
        block.word_bits.take(byte_T[span], mode="clip", out=bits_T[span])
    return ids_T, (bits_T >> (source_T & 7).astype(np.uint8) & 1).view(np.bool_)


def _frame(
    ids_T: npt.NDArray[np.generic],
    word_starts_T: npt.NDArray[np.bool_] | None,
    layout: Layout,
    special_ids: Mapping[str, int],
) -> None:
    """Write [CLS] and [SEP] around each piece."""
    first_D, last_D = layout.bounds_D1[:-1], layout.bounds_D1[1:] - 1
    ids_T[first_D], ids_T[last_D] = special_ids["cls"], special_ids["sep"]
    if word_starts_T is not None:
        # A long document may be cut within a word: the tail then is a word of its own, not a part of the word [CLS].
        # In a filler the token after [CLS] is [SEP].
        word_starts_T[first_D] = word_starts_T[first_D + 1] = word_starts_T[last_D] = True


def _joined(arrays: Sequence[npt.NDArray[_Type]]) -> npt.NDArray[_Type]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _tensor(array: npt.NDArray[np.generic]) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
