"""Requests to stop or to save: signals, files in the run folder, time that is over. Each only sets a flag; the ranks
agree on the step at which all of them act.

Legend: R ranks.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from train.errors import UserError

STOP_FILE, SAVE_FILE = "stop", "save"
LAUNCHER = "BERTMAE_LAUNCHER"  # the variable that holds the process of `launch`
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_FILE, _TIME = "file stop", "time"
_REASONS = (*(number.name for number in _STOP), _FILE, _TIME)  # a rank sends 1 + the index of its reason
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LOOK_EVERY = 1.0  # seconds


class StopRequest:
    """Set by TERM, INT or USR1; a second INT ends the process at once. `watch` adds the files and the time.

    `reason` is why this rank was asked to stop, None where it was not; `wants_save` whether a checkpoint is asked for.
    `started` is the beginning of the process, on the clock of time.monotonic().
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.reason: str | None = None
        self.wants_save = False
        self._looking = threading.Lock()

    def install(self) -> None:
        for number in _STOP:
            signal.signal(number, self._ask)
        if sys.platform == "linux":
            # Where torchrun is killed its workers would train on alone, and hold the run folder against a new start.
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)
            if os.environ.get(LAUNCHER, str(os.getppid())) != str(os.getppid()):
                self.reason = signal.SIGTERM.name  # it was killed before: no signal comes any more

    def wait(self, seconds: float) -> None:
        """Return when a request comes, or after `seconds`."""
        end = time.monotonic() + seconds
        while self.reason is None and time.monotonic() < end:
            time.sleep(0.05)

    def watch(self, run: Path, max_minutes: float | None) -> None:
        """From now on look once a second for `run`/stop and `run`/save, and whether `max_minutes` have passed.

        The thread ends with the process. A file system that hangs holds up the thread, and no step.
        """
        threading.Thread(target=self._watch, args=(run, max_minutes), daemon=True).start()

    def remove(self, file: Path) -> None:
        """A request by file was done: the next one is a new file. Raises UserError where it cannot be removed."""
        with self._looking:  # or the thread, which saw the old file, would ask once more
            try:
                file.unlink(missing_ok=True)
            except OSError as error:
                raise UserError(f"{file}: cannot be removed ({error.strerror}); remove it and start again") from error
            if file.name == SAVE_FILE:
                self.wants_save = False

    def code(self) -> int:
        """The reason as a number for `who_asked`; 0 where nobody asked this rank."""
        return 0 if self.reason is None else 1 + _REASONS.index(self.reason)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _watch(self, run: Path, max_minutes: float | None) -> None:
        while True:
            with self._looking:
                self._look(run, max_minutes)
            time.sleep(_LOOK_EVERY)

    def _look(self, run: Path, max_minutes: float | None) -> None:
        if _is_there(run / SAVE_FILE):
            self.wants_save = True
        if _is_there(run / STOP_FILE):
            self.reason = self.reason or _FILE
        if max_minutes is not None and time.monotonic() - self.started >= 60 * max_minutes:
            self.reason = self.reason or _TIME


def _is_there(file: Path) -> bool:
    """A file system that answers with an error makes no request."""
    try:
        return file.is_file()
    except OSError:
        return False


def who_asked(codes_R: list[int], max_minutes: float | None) -> str:
    """The requests of all ranks in words: "TERM on rank 1", "file stop", "90 minutes are over"."""
    words = []
    for code, reason in enumerate(_REASONS, start=1):
        ranks = [str(rank) for rank, other in enumerate(codes_R) if other == code]
        if reason == _TIME and ranks:
            words.append(f"{max_minutes:g} minutes are over")
        elif reason == _FILE and ranks:
            words.append(reason)
        elif ranks:
            words.append(f"{reason.removeprefix('SIG')} on {_named(ranks, len(codes_R))}")
    return ", ".join(words)


def _named(ranks: list[str], world_size: int) -> str:
    """A cluster's scheduler signals every rank: nobody wants to read them all."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return "all ranks" if len(ranks) == world_size else f"ranks {', '.join(ranks)}"
