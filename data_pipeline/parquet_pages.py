"""The pages of one column of a parquet row group: how large each one is, from the headers, whatever they hold.

A header is a struct of Thrift's compact protocol; only what decides about reading is kept of it.
"""

from collections.abc import Iterator
from typing import IO, Any, NamedTuple

DATA, _, DICTIONARY, DATA_V2 = range(4)  # kinds of pages; the one left out is an index that nobody writes
PLAIN, RLE, DELTA_BYTE_ARRAY = 0, 3, 7  # encodings
DICTIONARY_ENCODINGS = (2, 8)
_HEADER_BYTES = 1 << 10  # read at first; statistics may make a header longer
_MOST_HEADER_BYTES = 16 << 20  # pyarrow's limit, too
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12

Fields = dict[int, Any]


class Page(NamedTuple):
    """A page of a column chunk, of one value a row."""

    kind: int
    start: int  # the byte of the file behind the header
    stored: int  # bytes in the file
    size: int  # bytes without compression
    values: int
    encoding: int
    level_encoding: int = RLE  # of what tells nulls
    level_bytes: int = 0  # of DATA_V2: before the values and never compressed
    compressed: bool = True  # where the column is

    @property
    def is_data(self) -> bool:
        """Whether rows are in it."""
        return self.kind in (DATA, DATA_V2)


def read_pages(file: IO[bytes], start: int, values: int) -> Iterator[Page]:
    """The pages from byte `start` on until they hold `values` values. Raises EOFError where the file ends before."""
    while values > 0:
        header, start = _header(file, start)
        try:
            page = _page(header, start)
        except KeyError as error:
            raise EOFError(f"no header of a page before byte {start:,}") from error
        if min(page.stored, page.size, page.values) < 0:
            raise EOFError(f"sizes below zero before byte {start:,}")
        yield page
        start += page.stored
        values -= page.values if page.is_data else 0


def _page(header: Fields, start: int) -> Page:
    kind, size, stored = header[1], header[2], header[3]
    if kind == DATA:
        data = header[5]
        return Page(kind, start, stored, size, data[1], data[2], level_encoding=data[3])
    if kind == DATA_V2:
        data = header[8]
        return Page(kind, start, stored, size, data[1], data[4], RLE, data[5] + data[6], data.get(7, True))
    return Page(kind, start, stored, size, header.get(7, {}).get(1, 0), PLAIN)


def _header(file: IO[bytes], start: int) -> tuple[Fields, int]:
    """The header at byte `start`, and where it ends."""
    size = _HEADER_BYTES
    while True:
        file.seek(start)
        content = file.read(size)
        try:
            header, end = _struct(content, 0)
            return header, start + end
        except IndexError as error:  # it is longer
            if len(content) < size or size >= _MOST_HEADER_BYTES:
                raise EOFError(f"no header of a page at byte {start:,}") from error
            size *= 4


def _struct(content: bytes, position: int) -> tuple[Fields, int]:
    """The fields by their numbers, and where the struct ends. IndexError where the content ends before."""
    fields: Fields = {}
    number = 0
    while head := content[position]:
        position += 1
        step, kind = head >> 4, head & 15
        if step:
            number += step
        else:
            number, position = _signed(content, position)
        fields[number], position = _value(content, position, kind)
    return fields, position + 1


def _value(content: bytes, position: int, kind: int) -> tuple[Any, int]:
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE, position
    if kind == _BYTE:
        return content[position], position + 1
    if kind == _DOUBLE:
        return None, position + 8
    if kind == _BINARY:
        size, position = number(content, position)
        return None, position + size
    if kind == _STRUCT:
        return _struct(content, position)
    if kind in (_LIST, _SET, _MAP):
        raise EOFError("a header of a page with lists")  # the format has none
    return _signed(content, position)


def _signed(content: bytes, position: int) -> tuple[int, int]:
    value, position = number(content, position)
    return (value >> 1) ^ -(value & 1), position


def number(content: bytes, position: int) -> tuple[int, int]:
    """A number of as many bytes as it needs (LEB128), and where it ends. IndexError where the content ends before,
    EOFError where it does not end.
    """
    value = shift = 0
    while True:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
        if shift > 56:
            raise EOFError("a number without end")
