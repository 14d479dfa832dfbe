"""Parts of a file as streams, compressed or not: nothing is held of them but what is asked for."""

import io
from collections.abc import Iterator
from typing import IO

_CHUNK_BYTES = 1 << 20


class Region(io.RawIOBase):
    """Bytes [start, start + size) of a file that others read at the same time."""

    def __init__(self, file: IO[bytes], start: int, size: int) -> None:
        """Nothing is read."""
        super().__init__()
        self._file, self._position, self._end = file, start, start + max(0, size)

    def readable(self) -> bool:
        """True."""
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        """As io.RawIOBase: some of the bytes, 0 at the end."""
        self._file.seek(self._position)
        content = self._file.read(min(len(buffer), self._end - self._position))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def stream_of(file: IO[bytes], start: int, size: int, codec: str = "") -> IO[bytes]:
    """The bytes of a region, decompressed by `codec`: one of pyarrow's that work as streams, or none."""
    region = io.BufferedReader(Region(file, start, size), _CHUNK_BYTES)
    if not codec:
        return region
    import pyarrow  # type: ignore[import-untyped]

    return io.BufferedReader(pyarrow.CompressedInputStream(region, codec), _CHUNK_BYTES)


def exactly(stream: IO[bytes], size: int) -> bytes:
    """The next `size` bytes. EOFError where the stream ends before."""
    content = stream.read(max(0, size))
    if len(content) < size:
        raise EOFError(f"{size - len(content):,} bytes are missing at the end")
    return content


def skip(stream: IO[bytes], size: int) -> None:
    """Read the next `size` bytes and hold few of them. EOFError where the stream ends before."""
    for piece in _pieces(size):
        exactly(stream, piece)


def _pieces(size: int) -> Iterator[int]:
    while size > 0:
        yield min(size, _CHUNK_BYTES)
        size -= _CHUNK_BYTES
