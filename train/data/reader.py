"""Owns reading blocks of a split: shards mapped into memory, each block's checksum verified when first touched."""

import functools
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import BlockEntry, Manifest, Split
from data_pipeline.shards import Block, block_checksum, read_block

# Each mapped shard holds a file descriptor, of which a process often has 1,024 for everything.
_OPEN_SHARDS = 256


@dataclass(frozen=True, slots=True)
class _Shard:
    memory: memoryview
    blocks: dict[int, Block]  # parsed once: parsing headers costs more than reading a row


class ShardReader:
    """The blocks of one split by number. Several processes that read one data set share its pages in memory."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        """Open nothing yet. Raises UserError for a split that the data set has not."""
        self.token_dtype = np.dtype(manifest.token_dtype)
        self._entries = [
            (manifest.directory / shard.name, entry)
            for shard in find_split(manifest, split).shards
            for entry in shard.blocks
        ]
        self._verified = bytearray(len(self._entries))
        self._open_shard = functools.lru_cache(_OPEN_SHARDS)(_open_shard)

    @property
    def blocks(self) -> int:
        """Number of blocks in the split."""
        return len(self._entries)

    def block(self, number: int) -> Block:
        """The arrays of a block, as views of the mapped shard that are valid as long as they are held.

        Raises DataError naming shard, block and reason where the block is damaged or missing.
        """
        path, entry = self._entries[number]
        try:
            shard = self._open_shard(path)
            block = shard.blocks.get(number)
            if block is None:
                block = shard.blocks[number] = self._parse(number, shard.memory, entry)
        except (OSError, DataError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            message = f"{path}, block {number:09d}: {reason}; restore the shard from a copy or build the data set again"
            raise DataError(message) from error
        return block

    def _parse(self, number: int, memory: memoryview, entry: BlockEntry) -> Block:
        end = entry.offset + entry.bytes
        if end > len(memory):
            raise DataError(f"the shard ends at byte {len(memory):,}, before the end of the block at byte {end:,}")
        buffer = memory[entry.offset : end]
        if not self._verified[number]:
            found = block_checksum(buffer)
            if found != entry.checksum:
                raise DataError(f"the checksum is {found} where the manifest has {entry.checksum}")
            self._verified[number] = 1
        block = read_block(buffer, entry.tokens, entry.documents)
        if block.ids_T.dtype != self.token_dtype:
            raise DataError(f"its ids are {block.ids_T.dtype} where the manifest has {self.token_dtype}")
        return block


def find_split(manifest: Manifest, split: str) -> Split:
    """The split of that name. Raises UserError naming those there are."""
    if split not in manifest.splits:
        names = ", ".join(sorted(manifest.splits))
        raise UserError(f"{manifest.directory} has no split {split!r}; it has {names or 'none'}")
    return manifest.splits[split]


def _open_shard(path: Path) -> _Shard:
    with path.open("rb") as file:
        # An empty file cannot be mapped; as an empty buffer it is reported like any other shard cut short.
        empty = path.stat().st_size == 0
        memory = memoryview(b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return _Shard(memory, {})
