"""A walk through any tar file as a stream, naming the damage that other readers pass over in silence.

Python's tarfile, and with it webdataset, takes a broken header for the end of the archive (cpython#120740), so does it
a hole of zeros; here both are named, and the walk goes on at the next header that is whole. Positions are bytes of the
archive, before compression. Formats: v7, ustar, GNU and PAX headers; plain or gzip.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from data_pipeline.checks.check_blocks import open_plain, unreadable
from data_pipeline.errors import DataError
from data_pipeline.shards import TAR_RECORD

NAMES = (".tar", ".tar.gz", ".tgz")
_ZERO = bytes(TAR_RECORD)
_CHUNK = 1 << 20
_EXTENSION_BYTES = 1 << 20  # of a PAX or long-name header: more is damage, not a name
_PAX_RECORD = re.compile(rb"(\d{1,18}) ([^=]+)=")
_SILENCE = "and other readers may end there without an error"
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file of the archive."""

    name: str
    position: int  # of its header
    size: int
    content: bytes | None  # None where it was not wanted


def walk(path: Path, wanted: Callable[[str], bool], report: Report) -> Iterator[Member]:
    """The plain files of a tar, with their content where the name is `wanted`.

    Every damage goes to `report`, a line each; nothing is raised. Memory: the content of one member.
    """
    try:
        with _open(path) as stream:
            yield from _members(stream, wanted, lambda line: report(f"{path}: {line}"))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        report(f"{path}: damaged gzip: {error}")
    except OSError as error:
        report(unreadable(path, error))
    except DataError as error:
        report(f"{path}: {error}")


def _open(path: Path) -> BinaryIO:
    """The archive's bytes. Compression is seen from the first bytes: webdataset writes gzip under any name."""
    with open_plain(path) as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if compressed else path.open("rb")  # type: ignore[return-value]


def _members(stream: BinaryIO, wanted: Callable[[str], bool], report: Report) -> Iterator[Member]:
    always: dict[str, bytes] = {}
    once: dict[str, bytes] = {}
    end = 0  # of what was read, headers that rename the next member included
    for position, info in _headers(stream, report):
        once = once if position == end else {}  # else the member that they rename is lost
        place = f"the header at byte {position:,}"
        if info.type in _PAX_TYPES:
            once |= _pax(_extension(stream, info, place), place)
        elif info.type == tarfile.XGLTYPE:
            always |= _pax(_extension(stream, info, place), place)
        elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            content = _extension(stream, info, place).rstrip(b"\0")
            once |= {"path": content} if info.type == tarfile.GNUTYPE_LONGNAME else {}
        else:
            name, size = _renamed(info, always | once, place)
            once = {}
            keep = info.isreg() and wanted(name)
            # Links and folders have no content, whatever size they give; what is unknown has one.
            has_content = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
            content = _content(stream, size if has_content else 0, keep, f"member {name!r} at byte {position:,}")
            if info.isreg():
                yield Member(name, position, size, content if keep else None)
        end = stream.tell()


def _headers(stream: BinaryIO, report: Report) -> Iterator[tuple[int, tarfile.TarInfo]]:
    """The headers with their positions, one at each place where the caller has left the stream."""
    broken: int | None = None  # where the walk lost its way
    while len(record := stream.read(TAR_RECORD)) == TAR_RECORD:
        position = stream.tell() - TAR_RECORD
        if record == _ZERO and broken is None:
            _check_end(stream, position, report)
            return
        info = _parse(record)
        if info is None:
            broken = position if broken is None else broken
        elif broken is None:
            yield position, info
        elif record[257:262] == b"ustar":  # the weak checksum alone would find headers in any content
            report(f"broken header at byte {broken:,}: what stands before byte {position:,} is lost, {_SILENCE}")
            broken = None
            yield position, info
    end = stream.tell()
    if broken == 0:
        report("no tar archive: no header is at byte 0, nor anywhere behind")
    elif broken is not None:
        report(f"broken header at byte {broken:,}: everything behind it, to byte {end:,}, is lost, {_SILENCE}")
    else:
        report(f"truncated: no end-of-archive record, the file ends at byte {end:,}")


def _parse(record: bytes) -> tarfile.TarInfo | None:
    try:
        info = tarfile.TarInfo.frombuf(record, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError):
        return None
    return info if info.size >= 0 else None


def _check_end(stream: BinaryIO, position: int, report: Report) -> None:
    """Two records of zeros end an archive, and nothing but zeros follows."""
    rest, chunk = position + TAR_RECORD, stream.read(_CHUNK)
    if len(chunk) < TAR_RECORD:
        report(f"truncated: one end-of-archive record at byte {position:,}, where two belong")
    while chunk:
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            found = rest + zeros
            report(f"zeros at byte {position:,} end the archive for its readers, but data follow at byte {found:,}")
            return
        rest += len(chunk)
        chunk = stream.read(_CHUNK)


def _content(stream: BinaryIO, size: int, keep: bool, what: str) -> bytes:
    """The next `size` bytes (none of them unless `keep`); the stream stands behind their padding then."""
    parts, missing = [], size
    while missing and (part := stream.read(min(missing, _CHUNK))):
        missing -= len(part)
        if keep:
            parts.append(part)
    if missing:
        raise DataError(f"truncated: {what} ends after {size - missing:,} of its {size:,} bytes")
    stream.read(-size % TAR_RECORD)
    return b"".join(parts)


def _extension(stream: BinaryIO, info: tarfile.TarInfo, place: str) -> bytes:
    if info.size > _EXTENSION_BYTES:
        raise DataError(f"{place} announces a name of {info.size:,} bytes: damaged")
    return _content(stream, info.size, True, place)


def _pax(content: bytes, place: str) -> dict[str, bytes]:
    """The records "LENGTH KEY=VALUE\\n" of a PAX header."""
    values, position = {}, 0
    while position < len(content) and content[position]:
        record = _PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(content):
            raise DataError(f"{place}: no PAX records")
        values[record[2].decode("utf-8", "surrogateescape")] = content[record.end() : end - 1]
        position = end
    return values


def _renamed(info: tarfile.TarInfo, values: dict[str, bytes], place: str) -> tuple[str, int]:
    """Name and size of a member, those of the PAX or long-name headers before it first."""
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith("GNU.sparse") for key in values):
        raise DataError(f"{place}: a sparse file, which is not read here; write the archive without --sparse")
    size = values.get("size", b"%d" % info.size)
    if not size.isdigit() or len(size) > 18:
        raise DataError(f"{place}: {size!r} is no size")
    name = values["path"].decode("utf-8", "surrogateescape") if "path" in values else info.name
    return name, int(size)
