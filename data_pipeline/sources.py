"""Input files become units of raw records: .jsonl, .json and .txt, plain, .gz or .zst, read as a stream."""

import gzip
import json
import os
import stat
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import xxhash

from data_pipeline.errors import DataError, UserError

FORMATS = (".jsonl", ".json", ".txt")
COMPRESSIONS = ("", ".gz", ".zst")
UNIT_BYTES = 1 << 20  # of records: some tenths of a second of work, small enough to balance, large enough to ship
_CHUNK_BYTES = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive records of one input file, about UNIT_BYTES of them; what a worker takes at a time."""

    format: str
    records: list[bytes]
    read: int  # bytes of the (compressed) input file that were read for it


class BadRecordError(Exception):
    """A record that holds no text; its text is the kind of badness, for the report."""


def describe_inputs(paths: Sequence[Path]) -> list[dict[str, str | int]]:
    """Name, size in bytes and xxh3_128 of every input. UserError for a missing file or an unknown kind."""
    return [_describe(path) for path in paths]


def read_units(paths: Sequence[Path], unit_bytes: int = UNIT_BYTES) -> Iterator[Unit]:
    """All records of all files in order, as units. DataError for a file that is damaged as a whole."""
    for path in paths:
        file_format, _ = _kind(path)
        with _open(path) as file:
            done = 0
            for records in _batches(_records(path, file), unit_bytes):
                position = file.tell()
                yield Unit(file_format, records, position - done)
                done = position


def record_text(file_format: str, record: bytes, text_field: str) -> str:
    """The text of one record. BadRecordError naming the kind when there is none."""
    try:
        decoded = record.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError("not UTF-8") from error
    if file_format == ".txt":
        return decoded
    if not decoded.strip():
        raise BadRecordError("blank line")
    try:
        fields = json.loads(decoded)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("not JSON") from error
    if not isinstance(fields, dict):
        raise BadRecordError("not a JSON object")
    if text_field not in fields:
        raise BadRecordError(f"no field {text_field!r}")
    if not isinstance(fields[text_field], str):
        raise BadRecordError(f"field {text_field!r} is not a string")
    return str(fields[text_field])


def _kind(path: Path) -> tuple[str, str]:
    """(format, compression) from the file name."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        for file_format in FORMATS:
            if name.endswith(file_format + compression):
                return file_format, compression
    known = ", ".join(FORMATS)
    raise UserError(f"{path}: not a kind of input that is known: {known}, each also with .gz or .zst at the end")


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (one call tells missing, forbidden and kind)
            raise UserError(f"{path}: not a file; --input takes files")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def _describe(path: Path) -> dict[str, str | int]:
    _kind(path)
    checksum, size = xxhash.xxh3_128(), 0
    with _open(path) as file:
        while chunk := file.read(_CHUNK_BYTES):
            checksum.update(chunk)
            size += len(chunk)
    return {"name": path.name, "bytes": size, "checksum": checksum.hexdigest()}


def _records(path: Path, file: BinaryIO) -> Iterator[bytes]:
    file_format, compression = _kind(path)
    chunks = _without_bom(_damage_named(path, _chunks(file, compression)))
    if file_format == ".json":
        return _array_elements(path, b"".join(chunks))
    return _lines(chunks) if file_format == ".jsonl" else _paragraphs(_lines(chunks))


def _batches(records: Iterable[bytes], unit_bytes: int) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record)
        if size >= unit_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _chunks(file: BinaryIO, compression: str) -> Iterator[bytes]:
    if compression == ".zst":
        yield from _zstd_chunks(file)
        return
    reader = gzip.GzipFile(fileobj=file) if compression == ".gz" else file
    while chunk := reader.read(_CHUNK_BYTES):
        yield chunk


def _zstd_chunks(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a truncated file for a finished one.
    import zstandard

    decompressor, whole = zstandard.ZstdDecompressor().decompressobj(), True
    while chunk := file.read(_CHUNK_BYTES):
        while chunk:
            yield decompressor.decompress(chunk)
            whole, chunk = decompressor.eof, decompressor.unused_data
            if whole:
                decompressor = zstandard.ZstdDecompressor().decompressobj()
    if not whole:
        raise EOFError("the file ends inside a frame")


def _damage_named(path: Path, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks`, with the errors of the decompressors and of the disk as DataError naming the file."""
    try:
        yield from chunks
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read to its end: {error}; repair it or leave it out") from error
    except Exception as error:
        if type(error).__name__ != "ZstdError":  # imported only where a .zst file is read
            raise
        raise DataError(f"{path}: cannot be decompressed: {error}; repair it or leave it out") from error


def _without_bom(chunks: Iterator[bytes]) -> Iterator[bytes]:
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= len(_UTF8_BOM):
            break
    yield head.removeprefix(_UTF8_BOM)
    yield from chunks


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines without their line feeds; a last line needs none."""
    parts: list[bytes] = []
    for chunk in chunks:
        first, *rest = chunk.split(b"\n")
        parts.append(first)
        if rest:
            yield b"".join(parts)
            yield from rest[:-1]
            parts = [rest[-1]]
    if last := b"".join(parts):
        yield last


def _paragraphs(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Runs of lines between blank lines: one document each."""
    block: list[bytes] = []
    for line in lines:
        if line.strip():
            block.append(line)
        elif block:
            yield b"\n".join(block)
            block = []
    if block:
        yield b"\n".join(block)


def _array_elements(path: Path, content: bytes) -> Iterator[bytes]:
    """The elements of one JSON array as JSON texts; the file is held in memory, large data is for JSON Lines."""
    try:
        elements = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    if not isinstance(elements, list):
        raise DataError(f"{path}: not a JSON array; a file with one object a line is named .jsonl")
    for element in elements:
        yield json.dumps(element).encode()
