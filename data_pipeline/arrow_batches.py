"""The record batches of Arrow files and streams, and a column of texts in them, of which one value is held at a time.

The descriptions of batches are FlatBuffers (Message.fbs and File.fbs of Arrow's format); only what leads to one column
is read of them. Legend: R rows.
"""

import io
from collections.abc import Iterator
from itertools import pairwise, repeat
from struct import error as StructError
from struct import unpack_from
from typing import IO, Any, NamedTuple

import numpy as np

from data_pipeline.record import OVERSIZED, Value
from data_pipeline.streams import exactly, skip, stream_of

MAGIC = b"ARROW1"
_FOOTER_END = 4 + len(MAGIC)
_DICTIONARY, _BATCH = 2, 3  # among the kinds of messages
_CODECS = ("lz4", "zstd")
_ROWS = 1 << 12  # described at a time
_OFFSETS = {"string": "<i4", "binary": "<i4", "large_string": "<i8", "large_binary": "<i8"}
_OF_VIEWS = ("string_view", "binary_view")
_VIEW = np.dtype([("size", "<i4"), ("inline", "V4"), ("buffer", "<i4"), ("offset", "<i4")])
_DIFFERENT = ("string_view", "binary_view", "list_view", "large_list_view")
_INLINE_BYTES = 12  # a text of as many stands in its view


class Buffer(NamedTuple):
    """Bytes of a file."""

    start: int
    size: int


class Batch(NamedTuple):
    """Where the buffers of all columns of a record batch are, one column after the other."""

    rows: int
    buffers: list[Buffer]
    codec: str  # of every buffer, or none


def read_batches(file: IO[bytes], size: int) -> Iterator[Batch]:
    """The record batches of a file of `size` bytes in order. Raises EOFError where it is damaged."""
    file.seek(0)
    is_file = file.read(len(MAGIC)) == MAGIC
    try:
        yield from (_batch(file, start) for start in _blocks(file, size)) if is_file else _batches_of_stream(file, size)
    except (StructError, IndexError) as error:
        raise EOFError("a description of a batch is damaged") from error


def first_buffer(schema: Any, text_field: str) -> int | None:
    """The number of the first buffer of a column in every batch; None where a column before it has no fixed number."""
    counts = [_buffers(field.type) for field in schema]
    before = counts[: schema.get_field_index(text_field)]
    return None if None in before else sum(count for count in before if count is not None)


def is_readable(kind: Any, batch: Batch) -> bool:
    """Whether `batch_values` reads this pyarrow type in this batch."""
    return str(kind) in _OFFSETS or (str(kind) in _OF_VIEWS and not batch.codec)


def batch_values(file: IO[bytes], batch: Batch, first: int, kind: Any, limit: int) -> Iterator[Value]:
    """The values of the column whose buffers start at number `first`; of those above `limit` bytes the beginning."""
    valid = _valid(file, batch, first)
    found = _views(file, batch, first, limit) if str(kind) in _OF_VIEWS else _texts(file, batch, first, kind, limit)
    for value, there in zip(found, valid, strict=True):
        yield value if there else Value(None)


def heaviest(file: IO[bytes], size: int) -> int:
    """The bytes that the largest batch takes, of dictionaries too, with what it is decompressed to."""
    file.seek(0)
    start = 8 if file.read(len(MAGIC)) == MAGIC else 0
    return max((_weight(file, content, body) for content, body in _messages(file, start, size)), default=0)


def _texts(file: IO[bytes], batch: Batch, first: int, kind: Any, limit: int) -> Iterator[Value]:
    dtype = np.dtype(_OFFSETS[str(kind)])
    offsets, texts = (_opened(file, batch, first + number) for number in (1, 2))
    end = int.from_bytes(exactly(offsets, dtype.itemsize), "little") if batch.rows else 0
    skip(texts, end)
    for rows in _pieces(batch.rows):
        bounds = [end, *np.frombuffer(exactly(offsets, rows * dtype.itemsize), dtype).tolist()]
        end = bounds[-1]
        for start, stop in pairwise(bounds):
            yield _value(texts, stop - start, limit)


def _views(file: IO[bytes], batch: Batch, first: int, limit: int) -> Iterator[Value]:
    views = _opened(file, batch, first + 1)
    for rows in _pieces(batch.rows):
        content = exactly(views, rows * _VIEW.itemsize)
        for row, (size, _, number, offset) in enumerate(np.frombuffer(content, _VIEW).tolist()):
            if size <= _INLINE_BYTES:
                place = io.BytesIO(content)
                place.seek(row * _VIEW.itemsize + 4)
                yield _value(place, size, limit)
            else:
                file.seek(batch.buffers[first + 2 + number].start + offset)
                yield _value(file, size, limit)


def _value(stream: IO[bytes], size: int, limit: int) -> Value:
    if size < 0:
        raise EOFError("a text of less than no bytes")
    content = exactly(stream, min(size, limit))
    skip(stream, size - len(content))
    return Value(content, OVERSIZED if size > limit else "")


def _valid(file: IO[bytes], batch: Batch, first: int) -> Iterator[int]:
    """0 for each row that has no value, else 1."""
    if not batch.buffers[first].size:
        yield from repeat(1, batch.rows)
        return
    stream = _opened(file, batch, first)
    for rows in _pieces(batch.rows):
        bits = np.frombuffer(exactly(stream, (rows + 7) // 8), np.uint8)
        yield from np.unpackbits(bits, count=rows, bitorder="little").tolist()


def _opened(file: IO[bytes], batch: Batch, number: int) -> IO[bytes]:
    """The content of a buffer: where batches are compressed, its size and then a frame, or -1 and then itself."""
    start, size = batch.buffers[number]
    if not batch.codec or not size:
        return stream_of(file, start, size)
    file.seek(start)
    raw = exactly(file, 8) == b"\xff" * 8
    return stream_of(file, start + 8, size - 8, "" if raw else batch.codec)


def _pieces(rows: int) -> Iterator[int]:
    """`rows` in pieces of _ROWS, a multiple of eight."""
    return (min(_ROWS, rows - first) for first in range(0, rows, _ROWS))


def _buffers(kind: Any) -> int | None:
    """How many buffers a column of a pyarrow type has in a batch, with those inside it; None where batches differ."""
    import pyarrow  # type: ignore[import-untyped]

    types = pyarrow.types
    if isinstance(kind, pyarrow.BaseExtensionType):
        return _buffers(kind.storage_type)
    if types.is_null(kind):
        return 0
    if types.is_dictionary(kind):
        return 2
    if types.is_union(kind) or types.is_run_end_encoded(kind) or str(kind).startswith(_DIFFERENT):
        return None
    inside = [_buffers(kind.field(index).type) for index in range(kind.num_fields)]
    return None if None in inside else kind.num_buffers + sum(count for count in inside if count is not None)


def _blocks(file: IO[bytes], size: int) -> Iterator[int]:
    """Where the messages of the record batches of a file begin, from its end."""
    file.seek(size - _FOOTER_END)
    (length,) = unpack_from("<i", exactly(file, 4))
    file.seek(size - _FOOTER_END - length)
    footer = exactly(file, length)
    start, count = _vector(footer, _root(footer), 3)
    return (unpack_from("<q", footer, start + 24 * index)[0] for index in range(count))


def _batches_of_stream(file: IO[bytes], size: int) -> Iterator[Batch]:
    for content, body in _messages(file, 0, size):
        if _kind(content) == _BATCH:
            yield _described(content, body)


def _messages(file: IO[bytes], position: int, size: int) -> Iterator[tuple[bytes, int]]:
    while message := _message(file, position):
        yield message
        content, body = message
        position = body + _body_bytes(content)
        if position > size:
            raise EOFError(f"{position - size:,} bytes of a batch are missing")


def _weight(file: IO[bytes], content: bytes, body: int) -> int:
    if _kind(content) not in (_DICTIONARY, _BATCH):
        return 0
    batch, decompressed = _described(content, body), 0
    for start, size in batch.buffers if batch.codec else []:
        if size:
            file.seek(start)
            decompressed += max(0, int.from_bytes(file.read(8), "little", signed=True))
    return _body_bytes(content) + decompressed


def _batch(file: IO[bytes], start: int) -> Batch:
    message = _message(file, start)
    if message is None:
        raise EOFError(f"no batch at byte {start:,}")
    return _described(*message)


def _message(file: IO[bytes], start: int) -> tuple[bytes, int] | None:
    """The description that begins at byte `start`, and where what it describes begins; None at the end of a stream."""
    file.seek(start)
    if not (head := file.read(1)):  # a stream may end so
        return None
    size = int.from_bytes(head + exactly(file, 3), "little", signed=True)
    if size == -1:  # what came before version 0.15 lacks it
        start, size = start + 4, int.from_bytes(exactly(file, 4), "little", signed=True)
    if size <= 0:
        return None
    return exactly(file, size), start + 4 + size


def _described(content: bytes, body: int) -> Batch:
    batch = _table(content, _root(content), 2)
    if _kind(content) == _DICTIONARY:
        batch = _table(content, batch, 1)
    start, count = _vector(content, batch, 2)
    places = [unpack_from("<qq", content, start + 16 * index) for index in range(count)]
    compression = _table(content, batch, 3)
    codec = _CODECS[_number(content, compression, 0, "<b")] if compression else ""
    return Batch(_number(content, batch, 0, "<q"), [Buffer(body + first, size) for first, size in places], codec)


def _kind(content: bytes) -> int:
    return _number(content, _root(content), 1, "<B")


def _body_bytes(content: bytes) -> int:
    return _number(content, _root(content), 3, "<q")


def _root(content: bytes) -> int:
    position: int = unpack_from("<I", content)[0]
    return position


def _field(content: bytes, table: int, index: int) -> int:
    """Where a field of a table is; 0 where it is left out."""
    slots = table - unpack_from("<i", content, table)[0]
    place = 4 + 2 * index
    offset: int = unpack_from("<H", content, slots + place)[0] if place < unpack_from("<H", content, slots)[0] else 0
    return table + offset if offset else 0


def _number(content: bytes, table: int, index: int, form: str) -> int:
    place = _field(content, table, index)
    value: int = unpack_from(form, content, place)[0] if place else 0
    return value


def _table(content: bytes, table: int, index: int) -> int:
    place = _field(content, table, index)
    return place + int(unpack_from("<I", content, place)[0]) if place else 0


def _vector(content: bytes, table: int, index: int) -> tuple[int, int]:
    """Where the elements of a vector begin, and how many there are."""
    start = _table(content, table, index)
    return (start + 4, unpack_from("<I", content, start)[0]) if start else (0, 0)
