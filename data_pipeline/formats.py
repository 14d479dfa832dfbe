"""File formats: .txt, .jsonl, .json, .csv, .parquet and .arrow files become records, in memory that is bounded."""

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from data_pipeline.columnar import column_records
from data_pipeline.errors import UserError
from data_pipeline.record import BOM, OVERSIZED, FileProblemError, Record

FORMATS = (".jsonl", ".json", ".txt", ".csv", ".parquet", ".arrow")
COMPRESSIONS = ("", ".gz", ".zst")
TXT_DOCUMENTS = ("block", "line", "file")
JSON_BYTES = 64 << 20  # of a .json array, which is held in memory; without end as .jsonl
_CHUNK_BYTES = 1 << 20
_ZSTD_BYTES = 1 << 9  # of compressed input at a time: at the best ratio of zstd this becomes 16 MiB
_HEAD_BYTES = 8 << 10  # looked at to tell text from binary
_UTF8_BOM = b"\xef\xbb\xbf"


class Stretch(NamedTuple):
    """Bytes [start, stop) of a file."""

    start: int
    stop: int


def kind(path: Path) -> tuple[str, str]:
    """(format, compression) from the file name; UserError when it is unknown."""
    name = path.name.lower()
    for compression in COMPRESSIONS:
        for file_format in FORMATS if not compression else FORMATS[:4]:
            if name.endswith(file_format + compression):
                return file_format, compression
    known = f"{', '.join(FORMATS)}; the first four also with .gz or .zst at the end"
    raise UserError(f"{path}: not a kind of input that is known: {known}")


def check_json_size(path: Path, size: int) -> None:
    """UserError naming the way out for a .json array of more than JSON_BYTES."""
    if kind(path)[0] == ".json" and size > JSON_BYTES:
        raise UserError(
            f"{path}: a .json array of more than {JSON_BYTES >> 20} MiB is not read; "
            "write one object a line and name it .jsonl, which may have any size"
        )


def records(
    path: Path, file: BinaryIO, text_field: str, txt_documents: str, limit: int, stretch: Stretch | None = None
) -> Iterator[Record]:
    """The records of a file in order; of one larger than `limit` bytes the first `limit`, with reason OVERSIZED.

    `stretch` chooses the lines that start in it, counted from there; for files of `has_stretches` only. Raises
    FileProblemError, UserError for a .json array that is too large.
    """
    file_format, compression = kind(path)
    if file_format in (".parquet", ".arrow"):
        yield from _with_problems_named(column_records(file_format, file, text_field, limit))
        return
    if stretch:
        chunks = _with_problems_named(_lines_of(file, stretch))
    else:
        chunks = _checked(_with_problems_named(_chunks(file, compression)))
    if file_format == ".json":
        yield from _elements(_whole_array(path, chunks), limit)
    elif file_format == ".csv":
        yield from rows(chunks, limit, quotes=True)
    elif file_format == ".jsonl" or txt_documents == "line":
        yield from rows(chunks, limit)
    elif txt_documents == "block":
        yield from _blocks(rows(chunks, limit), limit)
    else:
        yield from _whole(chunks, limit)


def has_stretches(path: Path, txt_documents: str) -> bool:
    """Whether the file can be read from the middle: every line is a record and lies there as it is."""
    file_format, compression = kind(path)
    return not compression and (file_format == ".jsonl" or (file_format == ".txt" and txt_documents == "line"))


def line_start(file: BinaryIO, position: int) -> int:
    """Where the first line starts that starts at byte `position` or later; the end of the file where none does."""
    if position == 0:
        return 0
    file.seek(position - 1)
    while chunk := file.read(_CHUNK_BYTES):
        found = chunk.find(b"\n")
        if found >= 0:
            return file.tell() - len(chunk) + found + 1
    return file.tell()


def _lines_of(file: BinaryIO, stretch: Stretch) -> Iterator[bytes]:
    """The lines that start in a stretch; of a file that is no text none, which its first stretch says."""
    try:
        _check_head(file.read(_HEAD_BYTES))
    except FileProblemError:
        if stretch.start == 0:
            raise
        return
    end, position = line_start(file, stretch.stop), line_start(file, stretch.start)
    file.seek(position)
    while position < end and (chunk := file.read(min(_CHUNK_BYTES, end - position))):
        position += len(chunk)
        yield chunk


def cut_at_character(content: bytes) -> bytes:
    """`content` without the beginning of a character at its end."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        return decoder.decode(content).encode()
    except UnicodeDecodeError:
        return content  # is dropped later for what it is


def csv_fields(row: str) -> list[str]:
    """The fields of one row, which may hold line feeds inside quotes. Raises csv.Error."""
    csv.field_size_limit(max(len(row), csv.field_size_limit()))
    return next(csv.reader([row], strict=True), [])


def rows(chunks: Iterable[bytes], limit: int, quotes: bool = False) -> Iterator[Record]:
    """The lines without their line feeds, a last line needing none; with `quotes`, line feeds inside "..." stay."""
    parts: list[bytes] = []
    size, line, start, inside = 0, 1, 1, False
    for chunk in chunks:
        for index, piece in enumerate(chunk.split(b"\n")):
            if index:
                line += 1
                if inside:
                    piece = b"\n" + piece
                else:
                    yield _limited(start, parts, size, limit)
                    parts, size, start = [], 0, line
            if size <= limit:
                parts.append(piece[: limit + 1 - size])
            size += len(piece)
            if quotes and piece.count(b'"') % 2:
                inside = not inside
    if size:
        yield _limited(start, parts, size, limit)


def _limited(line: int, parts: list[bytes], size: int, limit: int) -> Record:
    content = b"".join(parts)
    return Record(line, content) if size <= limit else Record(line, content[:limit], OVERSIZED)


def _blocks(lines: Iterable[Record], limit: int) -> Iterator[Record]:
    """Runs of lines between blank lines: one document each."""
    block: list[bytes] = []
    size = start = 0
    for line in lines:
        if line.reason or line.content.strip():
            start = start if block else line.line
            if size <= limit:
                block.append(line.content if not block else b"\n" + line.content)
            size += len(line.content) + 1 + bool(line.reason)
        elif block:
            yield _limited(start, block, size - 1, limit)
            block, size = [], 0
    if block:
        yield _limited(start, block, size - 1, limit)


def _whole(chunks: Iterable[bytes], limit: int) -> Iterator[Record]:
    parts: list[bytes] = []
    size = 0
    for chunk in chunks:
        if size <= limit:
            parts.append(chunk)
        size += len(chunk)
    yield _limited(1, parts, size, limit)


def _whole_array(path: Path, chunks: Iterable[bytes]) -> str:
    content = bytearray()
    for chunk in chunks:
        content += chunk
        check_json_size(path, len(content))
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise FileProblemError("damaged", f"not UTF-8 at byte {error.start:,}") from error


def _elements(text: str, limit: int) -> Iterator[Record]:
    """The elements of a JSON array as JSON texts."""
    space, decode, number = json.decoder.WHITESPACE, json.JSONDecoder().raw_decode, 0  # type: ignore[attr-defined]
    repair = BOM if text.startswith("\ufeff") else ""
    end = space.match(text, len(repair and "\ufeff")).end()
    if text[end : end + 1] != "[":
        raise FileProblemError("damaged", "not a JSON array; a file with one object a line is named .jsonl")
    end = space.match(text, end + 1).end()
    if text[end : end + 1] == "]":
        return
    while True:
        start = end
        try:
            _, end = decode(text, start)
        except (ValueError, RecursionError) as error:
            raise FileProblemError("damaged", f"not JSON at character {start:,}") from error
        number += 1
        content = text[start:end].encode(errors="surrogatepass")
        yield Record(number, content[:limit], OVERSIZED if len(content) > limit else "", repair)
        repair, end = "", space.match(text, end).end()
        if text[end : end + 1] == "]":
            return
        if text[end : end + 1] != ",":
            raise FileProblemError("damaged", f"not JSON at character {end:,}")
        end = space.match(text, end + 1).end()


def _checked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks`, when they are text."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= _HEAD_BYTES:
            break
    _check_head(head[:_HEAD_BYTES])
    yield head
    yield from chunks


def _check_head(head: bytes) -> None:
    if not head:
        raise FileProblemError("empty", "no bytes")
    if _is_binary(head):
        raise FileProblemError("binary", "zero bytes among what is no UTF-8, or UTF-16; text is read as UTF-8")


def _is_binary(head: bytes) -> bool:
    """Zero bytes alone may be dirt in a text: they are a sign with other bytes that no text has, or in numbers."""
    zeros = head.count(0)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or zeros > len(head) // 10 + 8:
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return zeros > 0
    return False


def _chunks(file: BinaryIO, compression: str) -> Iterator[bytes]:
    if compression == ".zst":
        yield from _gathered(_zstd_pieces(file))
        return
    reader: Any = gzip.GzipFile(fileobj=file) if compression == ".gz" else file
    while chunk := reader.read(_CHUNK_BYTES):
        yield chunk


def _zstd_pieces(file: BinaryIO) -> Iterator[bytes]:
    # Not stream_reader: it takes a truncated file for a finished one.
    import zstandard

    decompressor, whole = zstandard.ZstdDecompressor().decompressobj(), True
    while chunk := file.read(_ZSTD_BYTES):
        while chunk:
            yield decompressor.decompress(chunk)
            whole, chunk = decompressor.eof, decompressor.unused_data
            if whole:
                decompressor = zstandard.ZstdDecompressor().decompressobj()
    if not whole:
        raise EOFError("the file ends inside a frame")


def _gathered(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """`pieces`, joined to about _CHUNK_BYTES; what came before an error comes before it."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= _CHUNK_BYTES:
                yield b"".join(held)
                held, size = [], 0
    except Exception:
        yield b"".join(held)
        raise
    yield b"".join(held)


def _with_problems_named(parts: Iterator[Any]) -> Iterator[Any]:
    """`parts`, with the errors of the disk, the decompressors and pyarrow as FileProblemError."""
    try:
        yield from parts
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:  # the last from names that pyarrow reads
        raise FileProblemError("damaged", f"cannot be read to its end: {error}") from error
    except Exception as error:
        if not _of_optional_library(type(error)):  # imported only where they are needed
            raise
        raise FileProblemError("damaged", f"cannot be read to its end: {error}") from error


def _of_optional_library(kind: type) -> bool:
    return kind.__name__ == "ZstdError" or kind.__module__.startswith("pyarrow")
