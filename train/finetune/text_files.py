"""Text files of fine-tuning data, plain, .gz or .zst: their lines, and what is wrong with a file in one line."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

from train.errors import DataError, UserError

_BOM = "\ufeff"


def read_text(path: Path) -> str:
    """The whole file as text, its byte order mark left out.

    Raises UserError where it cannot be opened, DataError where it is damaged or no UTF-8 (with the line).
    """
    content = read_bytes(path)
    try:
        return content.decode().removeprefix(_BOM)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8; convert the file (iconv -t UTF-8)") from error


def read_lines(path: Path) -> list[str]:
    """The lines without their ends; only \\n and \\r\\n end one, so that line numbers are those of an editor."""
    lines = read_text(path).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def read_bytes(path: Path) -> bytes:
    """Decompressed by the end of the name. Raises UserError where it cannot be opened, DataError for damage."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        if path.suffix == ".gz":
            return gzip.decompress(content)
        if path.suffix == ".zst":
            return _zstandard(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: damaged ({error})") from error
    return content


def _zstandard(content: bytes) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True) as reader:
            return reader.read()
    except zstandard.ZstdError as error:
        raise OSError(error) from error
