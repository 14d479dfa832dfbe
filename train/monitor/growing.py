"""Files that grow during a run: what the disk does not take now is kept in memory, and written when there is room."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

from train.errors import UserError
from train.monitor.logs import log

MOST_WAITING = 50_000  # pieces kept in memory; beyond that the oldest are lost


class GrowingFile:
    """Appends pieces of bytes, in order and each once. A disk that refuses costs a warning: a run does not end for
    its statistics."""

    def __init__(self, path: Path) -> None:
        """Open at the end. Raises UserError where that is impossible."""
        self._path = path
        self._waiting: deque[bytes] = deque()
        self._lost = 0
        self._refused = False
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error

    def append(self, piece: bytes) -> None:
        """Write a piece after all that still wait; where the disk refuses it waits too."""
        self._waiting.append(piece)
        if len(self._waiting) > MOST_WAITING:
            del self._waiting[1]  # of the first one a part may be written already
            self._lost += 1
        self._write()

    def sync(self) -> None:
        """Everything written so far survives a power cut. Raises OSError; what waits is none of it."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Write what waits, if there is room by now."""
        self._write()
        if self._waiting or self._lost:
            log.warning("%s: %d records were never written", self._path, len(self._waiting) + self._lost)
        os.close(self._descriptor)

    def _write(self) -> None:
        many = len(self._waiting)
        try:
            while self._waiting:
                written = os.write(self._descriptor, self._waiting[0])
                # A disk with room for a part takes that: a reader sees a torn end, as after a kill, until the rest is
                # there.
                if rest := self._waiting[0][written:]:
                    self._waiting[0] = rest
                else:
                    self._waiting.popleft()
        except OSError as error:
            self._refuse(error)
            return
        if self._refused:
            self._refused = False
            log.info("%s: written again, with %d records that waited", self._path, many)

    def _refuse(self, error: OSError) -> None:
        if not self._refused:
            self._refused = True
            log.warning(
                "%s: cannot be written (%s): the run goes on, and keeps up to %d records in memory until there is room",
                self._path,
                error.strerror,
                MOST_WAITING,
            )
