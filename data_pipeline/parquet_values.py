"""Texts of parquet pages that are too large for pyarrow, which needs four times their size: one value at a time.

Pages are read as streams where their compression is made for it. Snappy and LZ4 are not: their pages are decompressed
as a whole, up to a limit. The encodings are those that writers use for texts: plain, or numbers of a dictionary.
"""

import io
import tempfile
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, repeat
from shutil import copyfileobj
from typing import IO, NamedTuple

import numpy as np

from data_pipeline.parquet_pages import DATA, DICTIONARY, DICTIONARY_ENCODINGS, PLAIN, RLE, Page, number
from data_pipeline.record import OVERSIZED, UNOPENED, Value
from data_pipeline.streams import exactly, skip, stream_of

WHOLE_BYTES = 640 << 20  # of a page that is decompressed as a whole, with what it is decompressed to
_STREAMS = {"GZIP": "gzip", "ZSTD": "zstd", "BROTLI": "brotli"}  # by the names in parquet's metadata
_WHOLES = {"SNAPPY": "snappy", "LZ4": "lz4_raw"}
_UNCOMPRESSED = "UNCOMPRESSED"
_GROUPS = 1 << 10  # of eight packed numbers at a time


class Column(NamedTuple):
    """What the pages of a column chunk have in common."""

    file: IO[bytes]
    codec: str
    optional: bool  # values may be null
    limit: int  # bytes of a value that are kept


class _UnopenedError(Exception):
    """A page that would need too much memory."""


def is_readable(pages: Sequence[Page], optional: bool) -> bool:
    """Whether all pages are encoded in ways that are known here."""
    return all(
        page.encoding in (PLAIN, *DICTIONARY_ENCODINGS) and (page.level_encoding == RLE or not optional)
        for page in pages
        if page.is_data
    )


def page_values(column: Column, pages: Sequence[Page]) -> Iterator[Value]:
    """The values of the rows of all pages in order; UNOPENED for those of a page that is too large to be opened.

    Raises EOFError and the errors of pyarrow for damaged pages.
    """
    dictionary: Callable[[int], Value] = _unopened
    with tempfile.TemporaryFile() as file:
        for page in pages:
            if page.kind == DICTIONARY:
                dictionary = _dictionary(column, page, file)
            elif page.is_data:
                yield from _data(column, page, dictionary)


def _data(column: Column, page: Page, dictionary: Callable[[int], Value]) -> Iterator[Value]:
    try:
        present, stream = _present(column, page)
    except _UnopenedError:
        yield from repeat(Value(b"", UNOPENED), page.values)
        return
    values = _plain(stream, column.limit)
    if page.encoding != PLAIN:
        width = exactly(stream, 1)[0]
        values = map(dictionary, _numbers(stream, width))
    for there in islice(present, page.values):
        yield next(values) if there else Value(None)


def _present(column: Column, page: Page) -> tuple[Iterator[int], IO[bytes]]:
    """1 for each value that is there, 0 for each null; and the stream of those that are there."""
    if page.kind == DATA:
        stream = _opened(column, page, 0)
        if not column.optional:
            return repeat(1), stream
        size = int.from_bytes(exactly(stream, 4), "little")
        return _numbers(io.BytesIO(exactly(stream, size)), 1), stream
    levels = exactly(stream_of(column.file, page.start, page.level_bytes), page.level_bytes)
    return _numbers(io.BytesIO(levels), 1) if column.optional else repeat(1), _opened(column, page, page.level_bytes)


def _opened(column: Column, page: Page, before: int) -> IO[bytes]:
    """The page behind its first `before` bytes, without compression. _UnopenedError where that takes too much."""
    start, stored = page.start + before, page.stored - before
    if not stored:
        return io.BytesIO()
    codec = column.codec if page.compressed else _UNCOMPRESSED
    if codec == _UNCOMPRESSED or codec in _STREAMS:
        return stream_of(column.file, start, stored, _STREAMS.get(codec, ""))
    if codec not in _WHOLES or page.stored + page.size > WHOLE_BYTES:
        raise _UnopenedError
    import pyarrow  # type: ignore[import-untyped]

    column.file.seek(start)
    content = exactly(column.file, stored)
    return io.BytesIO(pyarrow.decompress(content, page.size - before, _WHOLES[codec], asbytes=True))


def _plain(stream: IO[bytes], limit: int) -> Iterator[Value]:
    while True:
        size = int.from_bytes(exactly(stream, 4), "little")
        content = exactly(stream, min(size, limit))
        skip(stream, size - len(content))
        yield Value(content, OVERSIZED if size > limit else "")


def _dictionary(column: Column, page: Page, file: IO[bytes]) -> Callable[[int], Value]:
    """A function of a number in the dictionary, whose values stay in a file on the disk."""
    try:
        copyfileobj(_opened(column, page, 0), file)
    except _UnopenedError:
        return _unopened
    starts, position = array("Q"), 0
    for _ in range(page.values):
        file.seek(position)
        starts.append(position)
        position += 4 + int.from_bytes(exactly(file, 4), "little")

    def value(index: int) -> Value:
        if index >= len(starts):
            raise EOFError(f"number {index:,} of a dictionary of {len(starts):,}")
        file.seek(starts[index])
        return next(_plain(file, column.limit))

    return value


def _unopened(_: int) -> Value:
    return Value(b"", UNOPENED)


def _numbers(stream: IO[bytes], width: int) -> Iterator[int]:
    """Numbers of `width` bits in parquet's hybrid of runs and packed groups of eight. EOFError where they end."""
    content, position = stream.read(), 0
    while position < len(content):
        try:
            head, position = number(content, position)
        except IndexError:
            break
        if head & 1:
            size = (head >> 1) * width
            yield from _unpacked(content[position : position + size], head >> 1, width)
        else:
            size = (width + 7) // 8
            yield from repeat(int.from_bytes(content[position : position + size], "little"), head >> 1)
        position += size
    raise EOFError("numbers are missing at the end of a page")


def _unpacked(content: bytes, groups: int, width: int) -> Iterator[int]:
    """8 * `groups` numbers, lowest bit first; zeros where the content ends before."""
    weights = 1 << np.arange(width)
    for first in range(0, groups, _GROUPS):
        some = min(_GROUPS, groups - first)
        packed = content[first * width : (first + some) * width].ljust(some * width, b"\0")
        bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")
        yield from (bits.reshape(8 * some, width) @ weights).tolist()
