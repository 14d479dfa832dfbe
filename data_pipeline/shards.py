"""The shard format: blocks of documents as samples of a plain ustar tar, fixed bytes, read without copies.

Legend: T tokens of the block, D documents of the block, D1 = D + 1.
"""

import io
import json
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.durable import commit, partial_name, writing
from data_pipeline.errors import DataError
from data_pipeline.manifest import BlockEntry, ShardEntry

MEMBERS = ("ids.npy", "offsets.npy", "words.npy", "json")
TAR_RECORD = 512
END_OF_TAR = bytes(2 * TAR_RECORD)
_NPY_MAGIC = b"\x93NUMPY\x01\x00"
# What numpy writes for a flat little-endian array; a regular expression, for a header is data and not to be evaluated.
_NPY_HEADER = re.compile(rb"\{'descr': '(<u2|<u4|\|u1)', 'fortran_order': False, 'shape': \((\d{1,18}),\), \} *\n")

Ids = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Block:
    """Documents end to end: document d is ids_T[offsets_D1[d]:offsets_D1[d + 1]]; no [CLS] or [SEP] inside."""

    ids_T: Ids
    offsets_D1: npt.NDArray[np.uint32]
    word_bits: npt.NDArray[np.uint8]  # one bit per token, lowest bit first: 1 = the token starts a word


def word_starts(block: Block) -> npt.NDArray[np.bool_]:
    """bool[T]: True where a token starts a word."""
    return np.unpackbits(block.word_bits, count=block.ids_T.size, bitorder="little").view(np.bool_)


def block_checksum(buffer: bytes | memoryview) -> str:
    """The checksum a manifest holds for a block's bytes: xxh3_64, hex."""
    return xxhash.xxh3_64_hexdigest(buffer)


def encode_block(
    number: int, ids_T: Ids, offsets_D1: npt.NDArray[np.uint32], word_starts_T: npt.NDArray[np.bool_], source: str
) -> bytes:
    """A block's tar members in their order, padded: a whole number of 512-byte tar records."""
    counts = {"source": source, "documents": offsets_D1.size - 1, "tokens": ids_T.size}
    contents = (
        _npy(ids_T),
        _npy(offsets_D1),
        _npy(np.packbits(word_starts_T, bitorder="little")),
        json.dumps(counts, ensure_ascii=False).encode(),
    )
    return b"".join(_tar_member(f"{number:09d}.{m}", c) for m, c in zip(MEMBERS, contents, strict=True))


def read_block(buffer: memoryview, tokens: int, documents: int) -> Block:
    """The block in `buffer`, the bytes [offset, offset + bytes) of a shard, as views into it.

    `tokens` and `documents` are the manifest's counts. Raises DataError saying what is malformed. Neither the
    checksum nor the range of the ids is looked at here.
    """
    (ids, offsets, words, counts), key = _members(buffer)
    ids_T = _array(ids, f"{key}.ids.npy", (b"<u2", b"<u4"), tokens)
    offsets_D1 = _array(offsets, f"{key}.offsets.npy", (b"<u4",), documents + 1)
    word_bits = _array(words, f"{key}.words.npy", (b"|u1",), -(-tokens // 8))
    if offsets_D1[0] != 0 or offsets_D1[-1] != tokens or (offsets_D1[1:] <= offsets_D1[:-1]).any():
        raise DataError(f"{key}.offsets.npy: document bounds do not rise from 0 to {tokens}")
    described = parse_counts(counts, f"{key}.json")
    if (described.get("tokens"), described.get("documents")) != (tokens, documents):
        raise DataError(f"{key}.json: other counts than the manifest's {tokens} tokens, {documents} documents")
    return Block(ids_T, offsets_D1, word_bits)


def parse_counts(content: memoryview, name: str) -> dict[str, Any]:
    """The JSON member of a block as a mapping. Raises DataError when it is none."""
    try:
        described = json.loads(bytes(content))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: not JSON: {error}") from error
    if not isinstance(described, dict):
        raise DataError(f"{name}: not a JSON object")
    return described


def map_shard(path: Path) -> memoryview:
    """The bytes of a shard, mapped and read-only. Raises DataError when there are none."""
    try:
        return np.memmap(path, np.uint8, "r").data
    except (OSError, ValueError) as error:  # ValueError: an empty file has nothing to map
        raise DataError(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from error


class ShardWriter:
    """Writes one shard under a temporary name; `finish` gives it its name, leaving the `with` without it removes it."""

    def __init__(self, path: Path) -> None:
        """Opens the temporary file of `path`. Every method raises UserError when the system refuses to write."""
        self._path = path
        self._hash = xxhash.xxh3_128()
        self._size = 0
        self.blocks: list[BlockEntry] = []
        with writing(path):
            self._file = partial_name(path).open("wb", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def write(self, block: bytes, tokens: int, documents: int) -> None:
        """Append a block made by `encode_block`."""
        self.blocks.append(BlockEntry(self._size, len(block), tokens, documents, block_checksum(block)))
        self._append(block)

    def finish(self) -> ShardEntry:
        """End the tar, bring it to the disk and rename it; the shard's line for the manifest."""
        self._append(END_OF_TAR)
        with writing(self._path):
            os.fsync(self._file.fileno())
            self._file.close()
            commit(self._path)
        return ShardEntry(self._path.name, self._size, self._hash.hexdigest(), tuple(self.blocks))

    def discard(self) -> None:
        """Remove the temporary file; nothing to do after `finish`."""
        self._file.close()
        partial_name(self._path).unlink(missing_ok=True)

    def _append(self, content: bytes) -> None:
        with writing(self._path):
            rest = memoryview(content)
            while rest:  # an unbuffered write may take only a part (a signal, a nearly full disk)
                rest = rest[self._file.write(rest) :]
        self._hash.update(content)
        self._size += len(content)


def _npy(array: npt.NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(buffer, little, version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _tar_member(name: str, content: bytes) -> bytes:
    # A float mtime would cost a PAX header of 1,024 bytes for each member; users and times would change the bytes.
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.uid, info.gid, info.mode = len(content), 0, 0, 0, 0o644
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % TAR_RECORD)


def _members(buffer: memoryview) -> tuple[list[memoryview], str]:
    """The contents of the block's four members, and the block's key (its number as nine digits)."""
    contents: list[memoryview] = []
    key, position = "", 0
    for member in MEMBERS:
        info = _tar_header(buffer, position)
        found_key, _, found_member = info.name.partition(".")
        if found_member != member or (contents and found_key != key):
            raise DataError(f"byte {position} of the block: member {info.name!r} where {key or 'KEY'}.{member} belongs")
        key, start = found_key, position + TAR_RECORD
        position = start + info.size + -info.size % TAR_RECORD
        if position > len(buffer):
            raise DataError(f"{info.name}: {info.size} bytes do not fit into the block's {len(buffer)}")
        contents.append(buffer[start : start + info.size])
    if position != len(buffer):
        raise DataError(f"block {key}: {len(buffer) - position} bytes follow its last member")
    return contents, key


def _tar_header(buffer: memoryview, position: int) -> tarfile.TarInfo:
    try:
        info = tarfile.TarInfo.frombuf(bytes(buffer[position : position + TAR_RECORD]), "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise DataError(f"byte {position} of the block: no tar header: {error}") from error
    if not info.isreg() or info.size < 0:
        raise DataError(f"byte {position} of the block: {info.name!r} is no plain file")
    return info


def _array(content: memoryview, name: str, dtypes: tuple[bytes, ...], size: int) -> npt.NDArray[Any]:
    """The flat array of `size` elements in a .npy member, as a view. Raises DataError when it is anything else."""
    start = len(_NPY_MAGIC) + 2 + int.from_bytes(content[8:10], "little")
    header = _NPY_HEADER.fullmatch(bytes(content[10:start]))
    if bytes(content[:8]) != _NPY_MAGIC or header is None or header[1] not in dtypes:
        raise DataError(f"{name}: not a flat .npy array of type {' or '.join(d.decode() for d in dtypes)}")
    dtype = np.dtype(header[1].decode())
    if int(header[2]) != size or len(content) - start != size * dtype.itemsize:
        raise DataError(f"{name}: {int(header[2])} elements in {len(content) - start} bytes, expected {size} elements")
    return np.frombuffer(content, dtype, offset=start)
