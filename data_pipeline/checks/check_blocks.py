"""A run of blocks of one shard, checked against the manifest: the work of one process of a verification.

Legend: V size of the vocabulary, D documents of a block.
"""

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.manifest import BlockEntry
from data_pipeline.shards import END_OF_TAR, Block, block_checksum, read_block

_NUMBER = 10  # bytes: nine digits and a dot begin the name of a member


@dataclass(frozen=True, slots=True)
class Rules:
    """What every block of the data set obeys."""

    token_dtype: str
    vocabulary_size: int
    outside_ids: dict[str, int]  # special tokens that stand in no document


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive blocks of a shard, all of them or some."""

    path: Path
    shard_bytes: int  # as the manifest says
    blocks: tuple[BlockEntry, ...]
    first_number: int  # of its blocks in the split
    start: int  # where it begins in the shard
    is_last: bool  # the end of the archive follows

    @property
    def end(self) -> int:
        """Where its last block ends in the shard."""
        return self.blocks[-1].offset + self.blocks[-1].bytes if self.blocks else self.start


@dataclass(slots=True)
class Findings:
    """What is wrong in a piece, a line each, and how often each id occurs in its sound blocks."""

    problems: list[str]
    counts_V: npt.NDArray[np.int64]
    checksum: str | None = None  # xxh3_128 of the shard, when the piece is all of it and every byte was read


def piece_checker(rules: Rules) -> Callable[[Piece], Findings]:
    """The function that checks one piece; memory: its largest block and a count of the vocabulary."""
    return partial(_check_piece, rules)


def open_plain(path: Path) -> FileIO:
    """Open for reading without a buffer. Raises OSError, also for an empty file and for a pipe, which would wait."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(None, "a folder" if path.is_dir() else "not a plain file")
    if not path.stat().st_size:
        raise OSError(None, "the file is empty")
    return path.open("rb", buffering=0)


def unreadable(path: Path, error: OSError) -> str:
    """The line that names a file the system does not give."""
    return f"{path}: cannot read: {error.strerror or error}"


def _check_piece(rules: Rules, piece: Piece) -> Findings:
    findings = Findings([], np.zeros(rules.vocabulary_size, np.int64))
    try:
        with open_plain(piece.path) as file:
            _check_blocks(rules, piece, file, findings)
    except OSError as error:
        findings.problems.append(unreadable(piece.path, error))
    return findings


def _check_blocks(rules: Rules, piece: Piece, file: FileIO, findings: Findings) -> None:
    size = os.fstat(file.fileno()).st_size
    largest = max((entry.bytes for entry in piece.blocks if entry.offset + entry.bytes <= size), default=0)
    space = np.empty(largest, np.uint8).data  # one for all blocks: stays in the processor's cache
    checksum, hashed, end = xxhash.xxh3_128(), 0, piece.start
    for number, entry in enumerate(piece.blocks, piece.first_number):
        place = f"{piece.path}: block {number:09d} at byte {entry.offset:,}"
        if entry.offset != end:
            findings.problems.append(f"{place}: {entry.offset - end:,} bytes before it belong to no block")
        try:
            buffer = _read(file, entry, size, space)
            checksum.update(buffer)
            hashed += len(buffer)
            findings.counts_V += _block_counts(rules, buffer, entry, number)
        except DataError as error:
            findings.problems.append(f"{place}: {error}")
        end = entry.offset + entry.bytes
    if piece.is_last:
        file.seek(end)
        tail = file.read(len(END_OF_TAR) + 1)
        if tail != END_OF_TAR:
            findings.problems.append(f"{piece.path}: no end-of-archive record after the last block, at byte {end:,}")
        checksum.update(tail)
        hashed += len(tail)
    findings.checksum = checksum.hexdigest() if hashed == piece.shard_bytes else None


def _read(file: FileIO, entry: BlockEntry, size: int, space: memoryview) -> memoryview:
    """The bytes of a block in `space`. Not mapped: a bad sector is an error to name, not a signal that kills."""
    missing = entry.offset + entry.bytes - size
    if missing > 0:
        raise DataError(f"the shard ends {missing:,} bytes too early")
    buffer, position = space[: entry.bytes], 0
    try:
        file.seek(entry.offset)
        while position < entry.bytes and (count := file.readinto(buffer[position:])):
            position += count
    except OSError as error:
        raise DataError(f"cannot read: {error.strerror or error}") from error
    if position < entry.bytes:
        raise DataError("the shard became shorter while it was read")
    return buffer


def _block_counts(rules: Rules, buffer: memoryview, entry: BlockEntry, number: int) -> npt.NDArray[np.int64]:
    """How often each id occurs in a block, int64[V]. Raises DataError saying what is wrong with the block."""
    if block_checksum(buffer) != entry.checksum:
        raise DataError("damaged: the checksum is not the manifest's" + _symptom(buffer, entry, number))
    block = _read_numbered(buffer, entry, number)
    if block.ids_T.dtype.name != rules.token_dtype:
        raise DataError(f"ids are {block.ids_T.dtype.name}, the manifest says {rules.token_dtype}")
    if block.ids_T.size and block.ids_T.max() >= rules.vocabulary_size:
        raise DataError(f"id {block.ids_T.max()} is not below the vocabulary size {rules.vocabulary_size}")
    counts_V = np.bincount(block.ids_T, minlength=rules.vocabulary_size)
    for name, special in rules.outside_ids.items():
        if counts_V[special]:
            raise DataError(f"the special token {name} stands inside")
    starts_D = block.offsets_D1[:-1]
    if not (block.word_bits[starts_D >> 3] >> (starts_D & 7) & 1).all():
        raise DataError("a document does not start with the start of a word")
    return counts_V


def _read_numbered(buffer: memoryview, entry: BlockEntry, number: int) -> Block:
    if bytes(buffer[:_NUMBER]) != f"{number:09d}.".encode():
        raise DataError(f"is numbered {bytes(buffer[: _NUMBER - 1])!r}")
    return read_block(buffer, entry.tokens, entry.documents)


def _symptom(buffer: memoryview, entry: BlockEntry, number: int) -> str:
    """What more can be seen of the damage: another block's number, the byte of a broken header."""
    try:
        _read_numbered(buffer, entry, number)
    except DataError as error:
        return f"; {error}"
    return ""
