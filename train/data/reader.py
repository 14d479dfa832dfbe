"""Owns reading blocks of a split: mapped or from a store, each block verified when first touched, damage named.

Legend: T tokens of a block, P pieces of a block.
"""

import functools
import mmap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.manifest import BlockEntry, Manifest
from data_pipeline.shards import Ids, block_checksum, read_block
from train.data.members import locate
from train.data.packing import RowPlan
from train.data.remote import BlockStore
from train.data.splits import find_split
from train.monitor.logs import log

# Each mapped shard holds a file descriptor, of which a process often has 1,024 for everything.
_OPEN_SHARDS = 256


@dataclass(frozen=True, slots=True)
class BlockArrays:
    """What a row is read from; both are views of mapped memory that are valid as long as they are held."""

    ids_T: Ids
    word_bits: npt.NDArray[np.uint8]  # one bit per token, lowest bit first


@dataclass(frozen=True, slots=True)
class _Shard:
    memory: memoryview
    blocks: dict[int, BlockArrays]


class ShardReader:
    """The blocks of one split by number. Several processes that read one data set share its pages in memory."""

    def __init__(
        self, manifest: Manifest, split: str, plan: RowPlan | None = None, store: BlockStore | None = None
    ) -> None:
        """Open nothing yet, but say what `plan` could not read; a block of other documents than it has is damaged.

        With `store` the blocks come from there. Raises UserError for a split that the data set has not.
        """
        self.token_dtype = np.dtype(manifest.token_dtype)
        self._plan = plan
        self._store = store
        shards = find_split(manifest, split).shards
        self._names = [shard.name for shard in shards]
        self._paths = [manifest.directory / name for name in self._names]
        self._entries = [(number, entry) for number, shard in enumerate(shards) for entry in shard.blocks]
        self._verified = bytearray(len(self._entries))
        self._space = bytearray()  # for the block that is verified: new memory would cost more than the checksum
        self.damage: dict[int, str] = {}  # what was wrong with a block, as the log was told
        for number, reason in plan.unread if plan else ():
            self._name_damage(number, f"{self._place(number)}: {reason}; restore the shard from a copy")
        self._open_shard = functools.lru_cache(_OPEN_SHARDS)(lambda number: _open_shard(self._paths[number]))

    @property
    def blocks(self) -> int:
        """Number of blocks in the split."""
        return len(self._entries)

    def sound_block(self, number: int) -> BlockArrays | None:
        """The arrays of a block; None where it is damaged or missing, which the log says once.

        A damaged block is tried anew each time: a disk that was away for a moment costs only the rows of that moment.
        """
        try:
            return self.block(number)
        except DataError as error:
            self._name_damage(number, str(error))
            return None

    def _name_damage(self, number: int, words: str) -> None:
        """Say in the log what is wrong with a block, once."""
        if number not in self.damage:
            self.damage[number] = words
            log.warning("%s; its rows are left out until then.", words)

    def _place(self, number: int) -> str:
        """The shard and the block in words."""
        shard = self._entries[number][0]
        path = self._store.name(self._names[shard]) if self._store else self._paths[shard]
        return f"{path}, block {number:09d}"

    def block(self, number: int) -> BlockArrays:
        """The arrays of a block. Raises DataError naming shard, block and reason where it is damaged or missing.

        Of a remote one, raises also what BlockStore.get raises: UserError for a store that is away for too long.
        """
        shard_number, entry = self._entries[number]
        if self._store is not None:
            return self._remote_block(number, self._store.get(self._names[shard_number], entry), entry)
        try:
            if not self._verified[number]:
                self._verify(number, self._sound_bytes(self._paths[shard_number], entry), entry)
            shard = self._open_shard(shard_number)
            arrays = shard.blocks.get(number)
            if arrays is None:
                arrays = shard.blocks[number] = self._view(shard.memory, entry)
        except (OSError, DataError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            message = f"{self._place(number)}: {reason}; restore the shard from a copy or build the data set again"
            raise DataError(message) from error
        return arrays

    @property
    def is_remote(self) -> bool:
        """Whether blocks come from a store."""
        return self._store is not None

    def prefetch(self, number_N: npt.NDArray[np.int64]) -> None:
        """Have these blocks fetched in the background where they are remote, in this order."""
        if self._store is not None:
            entries = [self._entries[number] for number in dict.fromkeys(number_N.tolist())]
            self._store.prefetch((self._names[shard], entry) for shard, entry in entries)

    def _remote_block(self, number: int, content: memoryview, entry: BlockEntry) -> BlockArrays:
        try:
            if not self._verified[number]:
                self._verify(number, content, entry)
        except DataError as error:
            raise DataError(f"{self._place(number)}: {error}; build the data set again") from error
        return self._view(content, replace(entry, offset=0))

    def _view(self, memory: memoryview, entry: BlockEntry) -> BlockArrays:
        members = locate(entry.tokens, entry.documents, self.token_dtype.itemsize)
        ids_T = np.frombuffer(memory, self.token_dtype, entry.tokens, entry.offset + members.ids)
        word_bits = np.frombuffer(memory, np.uint8, -(-entry.tokens // 8), entry.offset + members.words)
        return BlockArrays(ids_T, word_bits)

    def _sound_bytes(self, path: Path, entry: BlockEntry) -> memoryview:
        if len(self._space) < entry.bytes:
            self._space = bytearray(entry.bytes)
        buffer = _read(path, entry, memoryview(self._space)[: entry.bytes])
        found = block_checksum(buffer)
        if found != entry.checksum:
            raise DataError(f"the checksum is {found} where the manifest has {entry.checksum}")
        return buffer

    def _verify(self, number: int, buffer: memoryview, entry: BlockEntry) -> None:
        """Raise DataError where the bytes of a block are not what this version writes and the plan was made from."""
        block = read_block(buffer, entry.tokens, entry.documents)
        if block.ids_T.dtype != self.token_dtype:
            raise DataError(f"its ids are {block.ids_T.dtype} where the manifest has {self.token_dtype}")
        located = self._view(buffer, replace(entry, offset=0))
        if not (np.shares_memory(located.ids_T[:1], block.ids_T[:1])):
            raise DataError("its arrays do not lie where this version writes them")
        if self._plan is not None:
            _check_plan(self._plan, number, block.offsets_D1.astype(np.int64))
        self._verified[number] = 1


def _check_plan(plan: RowPlan, number: int, offsets_D1: npt.NDArray[np.int64]) -> None:
    """Raise DataError where a piece of the plan does not lie in one document: its bounds were damaged when planned."""
    last_row = int(plan.last_row_B[number])
    pieces = slice(plan.row_pieces_R1[last_row - plan.rows_B[number]], plan.row_pieces_R1[last_row])
    start_P = plan.piece_start_P[pieces].astype(np.int64)
    end_P = offsets_D1[np.searchsorted(offsets_D1[:-1], start_P, side="right")]
    if (start_P + plan.piece_length_P[pieces] > end_P).any():
        raise DataError("the packing plan was made from other document bounds; remove the file in the folder plans")


def _read(path: Path, entry: BlockEntry, buffer: memoryview) -> memoryview:
    """`buffer` with the bytes of a block. Not mapped: a bad sector is an error to name, not a signal that kills."""
    with path.open("rb", buffering=0) as file:
        file.seek(entry.offset)
        position = 0
        while position < entry.bytes and (count := file.readinto(buffer[position:])):
            position += count
    if position < entry.bytes:
        end, found = entry.offset + entry.bytes, entry.offset + position if position else path.stat().st_size
        raise DataError(f"the shard ends at byte {found:,}, before the end of the block at byte {end:,}")
    return buffer


def _open_shard(path: Path) -> _Shard:
    with path.open("rb") as file:
        return _Shard(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), {})
