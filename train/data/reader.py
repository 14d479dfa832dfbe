"""Owns reading blocks of a split: mapped or from a store, each block verified when first touched, damage named.

Legend: T tokens of a block, P pieces of a block.
"""

import mmap
import os
import time
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
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
# A step reads for a moment, then waits longer than this: so before each step the sizes of its shards are looked at.
_LOOK_AGAIN = 0.05  # seconds


@dataclass(frozen=True, slots=True)
class BlockArrays:
    """What a row is read from: views of mapped memory that are valid as long as they are held."""

    ids_T: Ids
    word_bits: npt.NDArray[np.uint8]  # one bit per token, lowest bit first
    ids: memoryview = field(init=False)  # the same arrays: a part of a view is had in a third of the time
    words: memoryview = field(init=False)

    def __post_init__(self) -> None:
        """The views."""
        object.__setattr__(self, "ids", self.ids_T.data)
        object.__setattr__(self, "words", self.word_bits.data)


@dataclass(frozen=True, slots=True)
class _Shard:
    """A mapped file. A page behind its end must not be touched: the system would end the process with SIGBUS."""

    mapped: mmap.mmap
    inode: int
    blocks: dict[int, BlockArrays]

    def is_whole(self) -> bool:
        """Whether the file still has the size it was mapped with."""
        with suppress(OSError):  # its disk is gone
            return self.mapped.size() == len(self.mapped)
        return False


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
        self._shards: OrderedDict[int, _Shard] = OrderedDict()  # mapped, the one used last at the end
        self._at_hand: dict[int, BlockArrays] = {}  # blocks whose shards were found whole since `_look`
        self._look = time.monotonic()

    @property
    def blocks(self) -> int:
        """Number of blocks in the split."""
        return len(self._entries)

    def sound_blocks(self, numbers: Iterable[int]) -> dict[int, BlockArrays]:
        """The arrays of those blocks that are whole, to be read at once; the log says once what is wrong with another.

        A damaged block is tried anew each time: a disk that was away for a moment costs only the rows of that moment.
        """
        if time.monotonic() - self._look > _LOOK_AGAIN:
            self._at_hand.clear()
            self._look = time.monotonic()
        found = {}
        for number in numbers:
            try:
                found[number] = self._at_hand.get(number) or self.block(number)
            except DataError as error:
                self._name_damage(number, str(error))
        return found

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
            arrays = self._shard(shard_number).blocks.get(number) or self._map_block(number)
        except (OSError, DataError) as error:
            reason = (error.strerror or error) if isinstance(error, OSError) else error
            message = f"{self._place(number)}: {reason}; restore the shard from a copy or build the data set again"
            raise DataError(message) from error
        self._at_hand[number] = arrays
        return arrays

    def _map_block(self, number: int) -> BlockArrays:
        """Verify a block unless that was done, and make its views."""
        shard_number, entry = self._entries[number]
        if not self._verified[number]:
            if self._paths[shard_number].stat().st_ino != self._shard(shard_number).inode:
                self._forget(shard_number)  # or the file that took its place would be verified, and the old one read
            self._verify(number, self._sound_bytes(self._paths[shard_number], entry), entry)
        shard = self._shard(shard_number)
        if len(shard.mapped) < entry.offset + entry.bytes:
            raise DataError(_too_short(len(shard.mapped), entry))
        arrays = shard.blocks[number] = self._view(memoryview(shard.mapped), entry)
        return arrays

    def _shard(self, number: int) -> _Shard:
        """The shard, mapped; one whose size changed is mapped anew."""
        if number in self._shards and not self._shards[number].is_whole():
            self._forget(number)
        if number not in self._shards:
            self._shards[number] = _open_shard(self._paths[number])
            if len(self._shards) > _OPEN_SHARDS:
                self._close(next(iter(self._shards)))
        self._shards.move_to_end(number)
        return self._shards[number]

    def _close(self, shard_number: int) -> None:
        """Let go of a mapping; it lives on as long as somebody holds views of it."""
        shard = self._shards.pop(shard_number, None)
        for number in shard.blocks if shard else ():
            self._at_hand.pop(number, None)

    def _forget(self, shard_number: int) -> None:
        """The shard is not what was verified: its size changed, or another file has its name."""
        self._close(shard_number)
        for number, (shard, _) in enumerate(self._entries):
            if shard == shard_number:
                self._verified[number] = 0

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
        raise DataError(_too_short(entry.offset + position if position else path.stat().st_size, entry))
    return buffer


def _too_short(size: int, entry: BlockEntry) -> str:
    end = entry.offset + entry.bytes
    return f"the shard ends at byte {size:,}, before the end of the block at byte {end:,}"


def _open_shard(path: Path) -> _Shard:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        if not status.st_size:
            raise DataError("the shard ends at byte 0, where its first block begins")
        return _Shard(mmap.mmap(file.fileno(), status.st_size, access=mmap.ACCESS_READ), status.st_ino, {})
