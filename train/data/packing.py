"""Owns the packing plan: documents cut into pieces, pieces packed into rows, known from document lengths alone.

Legend: B blocks, D documents of a block, P pieces, R rows. Positions count ordinary tokens of a block; a row's budget
counts [CLS] and [SEP] too.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import BlockEntry, Manifest, ShardEntry
from train.data.members import offsets_span, parse_offsets
from train.data.remote import BlockStore
from train.data.splits import find_split

SPECIALS_PER_PIECE = 2
# Any change of what a plan holds for the same lengths needs a new number here, and a new ORDER_VERSION (order.py).
PACKING_VERSION = 2

_READERS = 8  # threads: on a remote disk the many small reads wait for answers
_REMOTE_READERS = 32  # a store answers later than a disk
_SHARDS_AHEAD = 32

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PackingRules:
    """What decides the rows beside the documents' lengths. All sizes in tokens."""

    sequence_length: int  # of a row, with [CLS] and [SEP] of every piece
    piece_length: int | None = None  # ordinary tokens of the pieces of a long document; None: what fills a row
    piece_overlap: int = 0  # ordinary tokens at the end of a piece that the next one repeats

    @property
    def longest_piece(self) -> int:
        """Ordinary tokens of the longest piece."""
        return self.piece_length or self.sequence_length - SPECIALS_PER_PIECE

    def check(self) -> None:
        """Raise UserError where no row, or no next piece, has room for an ordinary token."""
        room = self.sequence_length - SPECIALS_PER_PIECE
        if room < 1:
            raise UserError(
                f"sequence_length {self.sequence_length} leaves no room between [CLS] and [SEP]; use 8 or more"
            )
        if self.longest_piece > room:
            raise UserError(f"data.piece_length {self.piece_length} does not fit: a row has room for {room} tokens")
        if self.piece_overlap >= self.longest_piece:
            raise UserError(
                f"data.piece_overlap {self.piece_overlap} leaves nothing new in a piece of {self.longest_piece} "
                "tokens; lower it"
            )


@dataclass(frozen=True)
class RowPlan:
    """What each row holds: row r is pieces [row_pieces_R1[r], row_pieces_R1[r + 1]) of its block.

    A row without pieces holds the place of a row of a block whose document bounds could not be read.
    """

    rules: PackingRules
    rows_B: Indices  # rows of each block; rows are numbered in the order of the blocks
    row_pieces_R1: Indices
    piece_start_P: npt.NDArray[np.uint32]
    piece_length_P: npt.NDArray[np.uint16]
    tokens: int  # [CLS] and [SEP] included
    unread: tuple[tuple[int, str], ...]  # (block, reason) where the document bounds could not be read
    digest: str  # `content_digest` of the arrays

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.row_pieces_R1) - 1

    @property
    def padding_share(self) -> float:
        """Share of rows x sequence_length that no token fills; `tokens` counts [CLS] and [SEP] as filled."""
        return 1 - self.tokens / (self.rows * self.rules.sequence_length) if self.rows else 0.0

    @cached_property
    def last_row_B(self) -> Indices:
        """The number of rows up to the end of each block."""
        return np.cumsum(self.rows_B)

    def first_blocks(self, blocks: int) -> "RowPlan":
        """The plan of the first `blocks` blocks alone: the same rows under the same numbers."""
        rows_B = self.rows_B[:blocks]
        row_pieces_R1 = self.row_pieces_R1[: int(rows_B.sum()) + 1]
        pieces = int(row_pieces_R1[-1])
        start_P, length_P = self.piece_start_P[:pieces], self.piece_length_P[:pieces]
        unread = tuple((block, reason) for block, reason in self.unread if block < blocks)
        return _plan(self.rules, rows_B, row_pieces_R1, start_P, length_P, unread)

    def blocks_of(self, row_N: Indices) -> Indices:
        """The block of each row."""
        return np.searchsorted(self.last_row_B, row_N, side="right")


def content_digest(
    rows_B: Indices,
    row_pieces_R1: Indices,
    piece_start_P: npt.NDArray[np.uint32],
    piece_length_P: npt.NDArray[np.uint16],
) -> str:
    """xxh3_64 (hex) of every row: equal plans have equal ones."""
    digest = xxhash.xxh3_64()
    for array in (rows_B, row_pieces_R1, piece_start_P, piece_length_P):
        digest.update(np.ascontiguousarray(array).data if array.size else b"")
    return digest.hexdigest()


def plan_rows(
    manifest: Manifest,
    split: str,
    rules: PackingRules,
    max_rows: int | None = None,
    store: BlockStore | None = None,
) -> RowPlan:
    """Plan every row of a split, or, given `max_rows`, only as many whole blocks as reach that many rows.

    Only the document bounds are read, and no checksum is made: damage elsewhere shows when a block is used. A block
    whose bounds cannot be read gets as many rows without pieces as its tokens would fill. Rows stand in the order of
    the text, so the first rows are no special kind. Raises UserError for impossible rules, an unknown split, and a
    `store` (where the shards are remote) that is away for too long.
    """
    rules.check()
    plans, unread, rows = [], [], 0
    for number, (entry, bounds) in enumerate(_document_bounds(manifest, split, store)):
        if max_rows is not None and rows >= max_rows:
            break
        if isinstance(bounds, str):
            unread.append((number, bounds))
            plans.append(_hold_places(entry.tokens, rules))
        else:
            plans.append(_plan_block(bounds, rules))
        rows += len(plans[-1].pieces_R)
    return _join(plans, rules, tuple(unread))


def readable(manifest: Manifest, split: str, blocks: set[int], store: BlockStore | None = None) -> bool:
    """Whether the document bounds of any of these blocks can be read."""
    first = 0
    for shard in find_split(manifest, split).shards:
        mine = blocks & set(range(first, first + len(shard.blocks)))
        if mine:
            found = _shard_bounds(manifest, store, shard)
            if any(not isinstance(found[number - first][1], str) for number in mine):
                return True
        first += len(shard.blocks)
    return False


Bounds = npt.NDArray[np.uint32] | str  # of a block's documents, or why they cannot be read


def _document_bounds(manifest: Manifest, split: str, store: BlockStore | None) -> Iterator[tuple[BlockEntry, Bounds]]:
    """Each block of the split; a few shards are read at a time and ahead of the others."""
    shards = find_split(manifest, split).shards
    read: Callable[[ShardEntry], list[tuple[BlockEntry, Bounds]]] = partial(_shard_bounds, manifest, store)
    with ThreadPoolExecutor(_REMOTE_READERS if store else _READERS) as pool:
        for start in range(0, len(shards), _SHARDS_AHEAD):
            for blocks in pool.map(read, shards[start : start + _SHARDS_AHEAD]):
                yield from blocks


def _shard_bounds(manifest: Manifest, store: BlockStore | None, shard: ShardEntry) -> list[tuple[BlockEntry, Bounds]]:
    token_bytes = np.dtype(manifest.token_dtype).itemsize
    if store is not None:
        return [(entry, _remote_bounds(store, shard.name, entry, token_bytes)) for entry in shard.blocks]
    path = manifest.directory / shard.name
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError as error:
        return [(entry, error.strerror or str(error)) for entry in shard.blocks]
    try:
        return [(entry, _block_bounds(file, entry, token_bytes)) for entry in shard.blocks]
    finally:
        os.close(file)


def _block_bounds(file: int, entry: BlockEntry, token_bytes: int) -> Bounds:
    start, size = offsets_span(entry.tokens, entry.documents, token_bytes)
    try:
        content = os.pread(file, size, entry.offset + start)
        if len(content) < size:
            return f"the shard ends before the end of the block at byte {entry.offset + entry.bytes:,}"
        return parse_offsets(content, entry.tokens, entry.documents)
    except OSError as error:
        return error.strerror or str(error)
    except DataError as error:
        return str(error)


def _remote_bounds(store: BlockStore, shard: str, entry: BlockEntry, token_bytes: int) -> Bounds:
    start, size = offsets_span(entry.tokens, entry.documents, token_bytes)
    try:
        return parse_offsets(store.peek(shard, entry.offset + start, size), entry.tokens, entry.documents)
    except DataError as error:
        return str(error).removeprefix(f"{store.name(shard)}: ")


@dataclass(frozen=True, slots=True)
class _BlockPlan:
    pieces_R: Indices  # pieces of each row
    start_P: npt.NDArray[np.uint32]
    length_P: npt.NDArray[np.uint16]


def _plan_block(offsets_D1: npt.NDArray[np.uint32], rules: PackingRules) -> _BlockPlan:
    start_P, length_P = cut_documents(offsets_D1.astype(np.int64), rules.longest_piece, rules.piece_overlap)
    row_P = pack_pieces(length_P + SPECIALS_PER_PIECE, rules.sequence_length)
    by_row = np.argsort(row_P, kind="stable")
    return _BlockPlan(np.bincount(row_P), start_P[by_row].astype(np.uint32), length_P[by_row].astype(np.uint16))


def _hold_places(tokens: int, rules: PackingRules) -> _BlockPlan:
    rows = -(-tokens // (rules.sequence_length - SPECIALS_PER_PIECE))
    return _BlockPlan(np.zeros(rows, np.int64), np.empty(0, np.uint32), np.empty(0, np.uint16))


def _join(plans: list[_BlockPlan], rules: PackingRules, unread: tuple[tuple[int, str], ...]) -> RowPlan:
    pieces_R = np.concatenate([np.empty(0, np.int64), *(plan.pieces_R for plan in plans)])
    rows_B = np.array([len(plan.pieces_R) for plan in plans], dtype=np.int64)
    row_pieces_R1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(pieces_R)])
    start_P = np.concatenate([np.empty(0, np.uint32), *(plan.start_P for plan in plans)])
    length_P = np.concatenate([np.empty(0, np.uint16), *(plan.length_P for plan in plans)])
    return _plan(rules, rows_B, row_pieces_R1, start_P, length_P, unread)


def _plan(
    rules: PackingRules,
    rows_B: Indices,
    row_pieces_R1: Indices,
    start_P: npt.NDArray[np.uint32],
    length_P: npt.NDArray[np.uint16],
    unread: tuple[tuple[int, str], ...],
) -> RowPlan:
    tokens = int(length_P.sum(dtype=np.int64)) + SPECIALS_PER_PIECE * len(length_P)
    digest = content_digest(rows_B, row_pieces_R1, start_P, length_P)
    return RowPlan(rules, rows_B, row_pieces_R1, start_P, length_P, tokens, unread, digest)


def cut_documents(offsets_D1: Indices, piece_length: int, overlap: int = 0) -> tuple[Indices, Indices]:
    """Cut each document into full pieces of `piece_length` tokens and the rest; (start_P, length_P) in text order.

    Each piece after the first begins `overlap` tokens before the end of the one before it.
    """
    start_D, length_D = offsets_D1[:-1], np.diff(offsets_D1)
    stride = piece_length - overlap
    pieces_D = np.where(length_D > 0, 1 + np.maximum(0, -(-(length_D - piece_length) // stride)), 0)
    first_piece_D = np.cumsum(pieces_D) - pieces_D
    within_P = (np.arange(pieces_D.sum()) - np.repeat(first_piece_D, pieces_D)) * stride
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
    row_P: list[int] = []
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
            row_P += chosen if per_row == 1 else [row for row in chosen for _ in range(per_row)]
            placed += taken * per_row
            left = room - per_row * cost
            rows_by_room[left].extend(chosen)
            rooms |= 1 << left | 1 << room
            if not rows_by_room[room]:
                rooms ^= 1 << room
    return np.array(row_P, dtype=np.int64)
