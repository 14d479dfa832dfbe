"""Documents of one split become blocks, blocks become shards: where a block and a shard end.

Legend: t tokens of one document, T tokens of a block.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.manifest import ShardEntry, Split
from data_pipeline.shards import Ids, ShardWriter, encode_block

BLOCK_BYTES = 1 << 20  # of ids


class SplitWriter:
    """Writes a split's documents in the order they come; the bytes depend on nothing else."""

    def __init__(self, directory: Path, split: str, source: str, shard_blocks: int, vocabulary_size: int) -> None:
        """Shards are DIRECTORY/SPLIT-000000.tar and so on, each of `shard_blocks` blocks but the last."""
        self._directory, self._split, self._source, self._shard_blocks = directory, split, source, shard_blocks
        self._ids: list[Ids] = []
        self._starts: list[npt.NDArray[np.bool_]] = []
        self._block_tokens = 0
        self._blocks = 0
        self._shard: ShardWriter | None = None
        self._shards: list[ShardEntry] = []
        self._documents = 0
        self.token_counts_V = np.zeros(vocabulary_size, np.int64)

    def add(self, ids_t: Ids, starts_t: npt.NDArray[np.bool_]) -> None:
        """Append one document. A document larger than a block is a block of its own."""
        if self._ids and (self._block_tokens + ids_t.size) * ids_t.itemsize > BLOCK_BYTES:
            self._end_block()
        self._ids.append(ids_t)
        self._starts.append(starts_t)
        self._block_tokens += ids_t.size
        self._documents += 1

    def begin_source(self, source: str) -> None:
        """What follows comes from `source`; a block holds documents of one source only."""
        if self._ids and source != self._source:
            self._end_block()
        self._source = source

    def finish(self) -> Split:
        """Write what is open and return the split's part of the manifest."""
        if self._ids:
            self._end_block()
        self._end_shard()
        return Split(self._documents, int(self.token_counts_V.sum()), tuple(self._shards))

    def discard(self) -> None:
        """Remove the shard that is not finished."""
        if self._shard:
            self._shard.discard()

    def _end_block(self) -> None:
        ids_T: Ids = np.concatenate(self._ids)  # type: ignore[assignment]
        offsets_D1 = np.cumsum([0, *(ids.size for ids in self._ids)]).astype(np.uint32)
        block = encode_block(self._blocks, ids_T, offsets_D1, np.concatenate(self._starts), self._source)
        if self._shard is None:
            self._shard = ShardWriter(self._directory / f"{self._split}-{len(self._shards):06d}.tar")
        self._shard.write(block, ids_T.size, len(self._ids))
        self.token_counts_V += np.bincount(ids_T, minlength=self.token_counts_V.size)
        self._ids, self._starts, self._block_tokens = [], [], 0
        self._blocks += 1
        if len(self._shard.blocks) == self._shard_blocks:
            self._end_shard()

    def _end_shard(self) -> None:
        if self._shard:
            self._shards.append(self._shard.finish())
            self._shard = None


@contextmanager
def split_writers(
    directory: Path, splits: tuple[str, ...], source: str, shard_blocks: int, vocabulary_size: int
) -> Iterator[dict[str, SplitWriter]]:
    """A writer for each split; their unfinished shards are removed at the end, whatever happens."""
    writers = {split: SplitWriter(directory, split, source, shard_blocks, vocabulary_size) for split in splits}
    try:
        yield writers
    finally:
        for writer in writers.values():
            writer.discard()
