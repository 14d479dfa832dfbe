"""Which files a build reads: files, folders and globs become a sorted list of files, each with its source's name."""

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import xxhash

from data_pipeline import hub
from data_pipeline.errors import DataError, UserError
from data_pipeline.formats import FORMATS, check_json_size, kind
from data_pipeline.notes import Example, Notes

INPUT_CHECKS = ("time", "hash")  # by what an input that changed between two calls is found, besides its size
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Input:
    """One file to read. `name` is its path below the folder or glob it was found by: the same on every machine."""

    path: Path
    name: str
    source: str
    size: int = 0  # bytes
    modified_ns: int = 0  # time of the last change
    checksum: str = ""  # xxh3_128, where it was asked for; what identifies an input of `datasets`
    parts: int = 0  # of an input that the library `datasets` opens by the name that is its path; 0 for files

    def as_json(self) -> dict[str, str | int]:
        """The entry of the manifest: nothing that differs between two copies of a file."""
        entry: dict[str, str | int] = {"name": self.name, "source": self.source, "bytes": self.size}
        return entry | ({"checksum": self.checksum} if self.checksum else {})


def find_inputs(patterns: Sequence[tuple[str, Path]], notes: Notes, strict: bool, hashed: bool = False) -> list[Input]:
    """The files of (source, file or folder or glob) in order, those of one source together, `hashed` with a checksum.

    What a folder or a glob holds that cannot be read is counted in `notes`, or is a DataError when `strict`. Raises
    UserError for a pattern that gives nothing, for a file given by name that is missing or of an unknown kind.
    """
    order = {source: position for position, source in reversed(list(enumerate(source for source, _ in patterns)))}
    inputs: list[Input] = []
    for source, pattern in sorted(patterns, key=lambda entry: order[entry[0]]):
        inputs += _one_pattern(source, pattern, notes, hashed)
    if strict and (reason := next(iter(notes.files), None)):
        example = notes.examples[reason][0]
        raise DataError(f"{example.file}: {reason}: {example.text} (--strict)")
    return inputs


def open_input(path: Path) -> BinaryIO:
    """The file, opened for reading; UserError when it is no file or the system refuses."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116 (one call tells missing, forbidden and kind)
            raise UserError(f"{path}: not a file, a folder or a glob of files")
        return path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error


def checksum(path: Path) -> str:
    """The xxh3_128 of a file, hex; UserError when the system refuses to read it."""
    digest = xxhash.xxh3_128()
    with open_input(path) as file:
        try:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror}") from error
    return digest.hexdigest()


def _one_pattern(source: str, pattern: Path, notes: Notes, hashed: bool) -> list[Input]:
    dataset = hub.parse(str(pattern))
    if dataset:
        parts, identity = hub.describe(dataset)
        return [Input(pattern, str(dataset), source, checksum=identity, parts=parts)]
    if pattern.is_dir():
        found = [Input(path, path.relative_to(pattern).as_posix(), source) for path in _walk(pattern, source, notes)]
    elif glob.has_magic(str(pattern)) and not pattern.exists():
        found = list(_matches(source, pattern, notes))
    else:
        if not pattern.exists() and not pattern.is_symlink():
            raise UserError(f"{pattern}: no such file, folder or glob")
        kind(pattern)
        return [_described(Input(pattern, pattern.name, source), hashed)]
    inputs = [described for entry in found if (described := _readable(entry, notes, hashed))]
    if not inputs:
        raise UserError(f"{pattern}: no input file there; known kinds: {', '.join(FORMATS)}")
    return inputs


def _matches(source: str, pattern: Path, notes: Notes) -> Iterator[Input]:
    """The files a glob matches, and those of the folders it matches; ** crosses folders."""
    parts = pattern.parts
    fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root = Path(*parts[:fixed])
    for match in sorted(glob.glob(str(pattern), recursive=True)):  # noqa: PTH207 (Path.glob takes no absolute pattern)
        path = Path(match)
        if not path.is_dir():
            yield Input(path, path.relative_to(root).as_posix(), source)
        elif "**" not in parts:
            for inner in _walk(path, source, notes):
                yield Input(inner, inner.relative_to(root).as_posix(), source)


def _walk(root: Path, source: str, notes: Notes) -> Iterator[Path]:
    """The files below a folder, sorted by path. Symbolic links are followed, but no folder is entered twice."""
    seen: set[tuple[int, int]] = set()

    def enter(folder: Path) -> Iterator[Path]:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            text = "a symbolic link to a folder that was read already"
            notes.add(notes.files, "folder met twice", Example(source, folder.relative_to(root).as_posix(), 0, text))
            return
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
        except OSError as error:
            notes.add(
                notes.files, "unreadable", Example(source, folder.relative_to(root).as_posix(), 0, str(error.strerror))
            )
            return
        for entry in entries:
            if entry.is_dir():
                yield from enter(entry)
            else:
                yield entry

    yield from enter(root)


def _readable(entry: Input, notes: Notes, hashed: bool) -> Input | None:
    """The input as `_described`; None, counted, when it is no input or cannot be read."""
    if entry.path.name.startswith("."):
        notes.add(notes.files, "hidden", Example(entry.source, entry.name, 0, "the name starts with a dot"))
        return None
    try:
        kind(entry.path)
    except UserError:
        text = f"known kinds: {', '.join(FORMATS)}"
        notes.add(notes.files, "unknown kind", Example(entry.source, entry.name, 0, text))
        return None
    try:
        return _described(entry, hashed)
    except (UserError, OSError) as error:
        text = str(error).removeprefix(f"{entry.path}: ")
        notes.add(notes.files, "unreadable", Example(entry.source, entry.name, 0, text))
        return None


def _described(entry: Input, hashed: bool) -> Input:
    """The input with its size and time, `hashed` with its checksum."""
    with open_input(entry.path) as file:
        status = os.fstat(file.fileno())
    check_json_size(entry.path, status.st_size)
    found = checksum(entry.path) if hashed else ""
    return replace(entry, size=status.st_size, modified_ns=status.st_mtime_ns, checksum=found)
