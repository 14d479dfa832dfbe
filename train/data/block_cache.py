"""Owns the cache of blocks on a node's disk: bounded in bytes, shared by processes, nothing removed while in use.

Every file is held by a lock of the system (flock): shared while it is mapped, exclusive while it is written or removed.
The system drops the locks of a process that dies, so nothing has to be cleaned up by hand.
"""

import fcntl
import mmap
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipeline.durable import PARTIAL, writing
from data_pipeline.errors import UserError

_USAGE = "usage"  # bytes of all files, as text; its lock guards every change of the folder
_SPARE = 16  # when the cache is full, 1/16 of it is freed at once: looking for the oldest costs a look at every file


class BlockCache:
    """A folder of files that are named by their content, at most `limit` bytes in all.

    A process may have any number of caches of one folder, and any number of threads may use one. The folder must be
    on a disk of the node. A mapped file costs a file descriptor.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Make the folder, drop what killed processes left. Raises UserError when it cannot be written."""
        self._folder = folder
        self._limit = limit
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            with self._usage() as usage:
                _set_number(usage, self._evict(0))

    def open(self, name: str) -> mmap.mmap | None:
        """The file, mapped for reading and safe from removal as long as the mapping lives; None when it is not there.

        Its bytes may be damaged: a cache is not flushed to the disk. Raises UserError when the system refuses, as it
        does with too many open files.
        """
        path = self._folder / name
        try:
            return _open_mapped(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UserError(f"{path}: cannot read: {error.strerror or error}") from error

    def touch(self, name: str) -> bool:
        """Whether the file is there; if so it counts as just used."""
        try:
            os.utime(self._folder / name)
        except FileNotFoundError:
            return False
        return True

    def add(self, name: str, content: bytes) -> mmap.mmap | None:
        """Store `content` under `name` and map it; None where all there is room for is in use.

        Raises UserError when the system refuses to write.
        """
        path = self._folder / name
        with writing(path):
            reserved = self._reserve(name, len(content))
            if reserved is None:
                return None
            descriptor, partial = reserved
            try:
                _write(descriptor, content)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self._publish(partial, path)
                return _mapped(descriptor)
            except BaseException:
                partial.unlink(missing_ok=True)
                raise
            finally:
                os.close(descriptor)

    def remove(self, name: str) -> None:
        """Forget a file, whoever uses it: it is damaged."""
        (self._folder / name).unlink(missing_ok=True)

    def _reserve(self, name: str, size: int) -> tuple[int, Path] | None:
        """A new file of `size` bytes, locked by its descriptor, so that what is not yet written counts already."""
        partial = self._folder / f"{name}.{secrets.token_hex(4)}{PARTIAL}"
        with self._usage() as usage:
            used = _number(usage)
            if used + size > self._limit:
                used = self._evict(size)
            fits = used + size <= self._limit
            _set_number(usage, used + size if fits else used)
            if not fits:
                return None
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.truncate(descriptor, size)
        return descriptor, partial

    def _publish(self, partial: Path, path: Path) -> None:
        with self._usage() as usage:  # or who lists the folder just now might see the file under neither name
            replaced = path.stat().st_size if path.exists() else 0
            partial.rename(path)
            _set_number(usage, max(0, _number(usage) - replaced))

    def _evict(self, size: int) -> int:
        """Remove what nobody uses, the longest unused first, until `size` bytes fit with some to spare; bytes left."""
        files = sorted(self._listed())
        used = sum(size for _, size, _ in files)
        enough = self._limit - size - (self._limit // _SPARE if size else 0)
        for _, file_size, path in files:
            # What is being written is locked: a partial file without a lock is of a process that died.
            if (used > enough or path.suffix == PARTIAL) and _remove_unused(path):
                used -= file_size
        return used

    def _listed(self) -> Iterator[tuple[int, int, Path]]:
        """Last use in ns, bytes and path of every file."""
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):  # removed as damaged
                if entry.name != _USAGE:
                    status = entry.stat()
                    yield status.st_mtime_ns, status.st_size, Path(entry.path)

    @contextmanager
    def _usage(self) -> Iterator[int]:
        descriptor = os.open(self._folder / _USAGE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)


def _remove_unused(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _open_mapped(path: Path) -> mmap.mmap | None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if not (status.st_nlink and status.st_size):  # removed before it was locked, or emptied by a loss of power
            return None
        os.utime(descriptor)
        return _mapped(descriptor)
    finally:
        os.close(descriptor)


def _mapped(descriptor: int) -> mmap.mmap:
    # The mapping keeps a duplicate of the descriptor, and with it the lock, until its last view is gone.
    return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _number(descriptor: int) -> int:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else 0


def _set_number(descriptor: int, number: int) -> None:
    os.pwrite(descriptor, b"%032d" % number, 0)
