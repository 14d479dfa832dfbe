"""Files that exist whole or not at all: temporary name, fsync, rename; and what a failed write says."""

import errno
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from data_pipeline.errors import UserError

PARTIAL = ".partial"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the body (disk full, no permission) into a UserError naming `path` and the system's reason."""
    try:
        yield
    except OSError as error:
        way_out = "; free some space and give the same command again" if error.errno in _FULL else ""
        raise UserError(f"{path}: cannot write: {error.strerror or error}{way_out}") from error


def partial_name(path: Path) -> Path:
    """The temporary name that `path` has until it is whole."""
    return path.with_name(path.name + PARTIAL)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(path: Path) -> None:
    """Give the finished, fsynced temporary file or folder of `path` its name."""
    partial_name(path).rename(path)
    fsync_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write and fsync `content` under the final name; for files in a folder that has no meaning yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` so that `path` holds all of it or what it held before; UserError when the system refuses."""
    temporary = partial_name(path)
    with writing(path):
        try:
            write_file(temporary, content)
            commit(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of `files`, whole or not at all; UserError when the system refuses."""
    temporary = partial_name(path)
    with writing(path):
        try:
            if temporary.exists():  # of a process that was killed
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            for name, content in files.items():
                write_file(temporary / name, content)
            fsync_folder(temporary)
            commit(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
