"""Which documents stay, and in which block of which shard each lies: the plan of all shards from the staged ranges.

It depends on the order of the documents and on the rules alone, not on how the input was cut into ranges.
Legend: D documents of a range, P paragraphs of a range, K documents of a split that stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.duplicates import KEPT, DuplicateRules, dropped, dropped_paragraphs
from data_pipeline.held_out import validation_limit
from data_pipeline.staging import StagedRange

BLOCK_BYTES = 1 << 20  # of ids
SPLITS = ("train", "validation")


@dataclass(frozen=True, slots=True)
class Selection:
    """What decides which documents and paragraphs stay, and on which side."""

    duplicates: Path  # folder of the results of find_duplicates
    rules: DuplicateRules
    validation_fraction: float


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays of a range."""

    reasons_D: npt.NDArray[np.uint8]  # duplicates.KEPT and so on
    stays_P: npt.NDArray[np.bool_]
    tokens_D: npt.NDArray[np.int64]  # of the paragraphs that stay
    split_D: npt.NDArray[np.int8]  # index into SPLITS; -1 where the document does not stay


class Piece(NamedTuple):
    """Consecutive documents of one range, counted among those of a split that stay in it."""

    range: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class BlockPlan:
    """One block: its source and its documents in their order."""

    source: str
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """One shard of a split: its number, the number of its first block, its blocks."""

    split: str
    number: int
    first_block: int
    blocks: tuple[BlockPlan, ...]

    @property
    def name(self) -> str:
        """Of the shard's file."""
        return f"{self.split}-{self.number:06d}.tar"


def select(staged: StagedRange, index: int, selection: Selection) -> Kept:
    """What stays of the range with this index in the order of the input."""
    paragraphs_D, tokens_P = staged["paragraphs_D"].astype(np.int64), staged["tokens_P"].astype(np.int64)
    reasons_D = dropped(selection.duplicates, index, len(paragraphs_D), selection.rules)
    stays_P = np.repeat(reasons_D == KEPT, paragraphs_D)
    if selection.rules.paragraphs:
        stays_P &= ~dropped_paragraphs(selection.duplicates, index, len(tokens_P))
    sums_P1 = np.concatenate([np.zeros(1, np.int64), np.cumsum(tokens_P * stays_P)])
    ends_D = np.cumsum(paragraphs_D)
    tokens_D = sums_P1[ends_D] - sums_P1[ends_D - paragraphs_D]
    held_out_D = staged["digest_D2"][:, 0] < np.uint64(validation_limit(selection.validation_fraction))
    return Kept(reasons_D, stays_P, tokens_D, np.where(tokens_D > 0, held_out_D, -1).astype(np.int8))


@dataclass(slots=True)
class Planner:
    """Cuts one split's documents into blocks and shards, range by range."""

    split: str
    shard_blocks: int
    block_tokens: int  # a block ends before a document with which it would hold more
    _blocks: list[BlockPlan] = field(default_factory=list)  # of the open shard
    _pieces: list[Piece] = field(default_factory=list)  # of the open block
    _tokens: int = 0
    _source: str = ""
    _done_blocks: int = 0
    _done_shards: int = 0

    def add(self, index: int, source: str, tokens_K: npt.NDArray[np.int64]) -> Iterator[ShardPlan]:
        """Append the documents of a range; the shards that are full. A block holds documents of one source only."""
        if source != self._source and self._pieces:
            yield from self._end_block()
        self._source = source
        ends_K, start, before = np.cumsum(tokens_K), 0, 0
        while start < len(tokens_K):
            stop = int(np.searchsorted(ends_K, before + self.block_tokens - self._tokens, side="right"))
            if stop == start and not self._pieces:
                stop += 1  # larger than a block: a block of its own
            if stop > start:
                self._pieces.append(Piece(index, start, stop))
                self._tokens += int(ends_K[stop - 1]) - before
                start, before = stop, int(ends_K[stop - 1])
            if start < len(tokens_K):
                yield from self._end_block()

    def finish(self) -> Iterator[ShardPlan]:
        """The last shard, if any is open."""
        if self._pieces:
            yield from self._end_block()
        if self._blocks:
            yield self._end_shard()

    def _end_block(self) -> Iterator[ShardPlan]:
        self._blocks.append(BlockPlan(self._source, tuple(self._pieces)))
        self._pieces, self._tokens = [], 0
        if len(self._blocks) == self.shard_blocks:
            yield self._end_shard()

    def _end_shard(self) -> ShardPlan:
        plan = ShardPlan(self.split, self._done_shards, self._done_blocks, tuple(self._blocks))
        self._done_shards += 1
        self._done_blocks += len(self._blocks)
        self._blocks = []
        return plan
