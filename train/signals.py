"""Requests to stop or to save: signals, files in the run folder, time that is over. Each only sets a flag; the ranks
agree on the step at which all of them act.

Signals are heard by a thread: a handler of Python's runs only when the main thread comes back from what it waits in, a
collective for example.

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

from train.errors import UserError

STOP_FILE, SAVE_FILE = "stop", "save"
LAUNCHER = "BERTMAE_LAUNCHER"  # the variable that holds the process of `launch`
_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_FILE, _TIME = "file stop", "time"
_REASONS = (*(number.name for number in _STOP), _FILE, _TIME)  # a rank sends 1 + the index of its reason
_LAUNCHERS = {LAUNCHER, "TORCHELASTIC_RUN_ID", "SLURM_PROCID", "PMI_RANK", "OMPI_COMM_WORLD_RANK"}
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
_LOOK_EVERY = 1.0  # seconds


class StopRequest:
    """Set by TERM, INT or USR1; a second INT ends the process at once. `watch` adds the files and the time.

    `reason` is why this rank was asked to stop, None where it was not; `wants_save` whether a checkpoint is asked for.
    `started` is the beginning of the process, on the clock of time.monotonic(); `max_minutes` what `watch` was given.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.reason: str | None = None
        self.wants_save = False
        self.max_minutes: float | None = None
        self._looking = threading.Lock()

    def install(self) -> None:
        heard, told = os.pipe()
        os.set_blocking(told, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
        threading.Thread(target=self._listen, args=(heard,), name="signals", daemon=True).start()
        for number in _STOP:
            signal.signal(number, lambda *_: None)
        if sys.platform == "linux" and _LAUNCHERS & os.environ.keys():
            # Where torchrun is killed its workers would train on alone, and hold the run folder against a new start.
            # Below a shell it is otherwise: what `nohup` began goes on when the shell ends.
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
        self.max_minutes = max_minutes
        threading.Thread(target=self._watch, args=(run,), daemon=True).start()

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

    def _listen(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number in _STOP:
                    self._ask(number)

    def _ask(self, number: int) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            # The kernel's default again, so that the next one ends the process; Python's own call is the main thread's.
            ctypes.CDLL(None).signal(int(number), None)

    def _watch(self, run: Path) -> None:
        while True:
            with self._looking:
                self._look(run)
            time.sleep(_LOOK_EVERY)

    def _look(self, run: Path) -> None:
        if _is_there(run / SAVE_FILE):
            self.wants_save = True
        if _is_there(run / STOP_FILE):
            self.reason = self.reason or _FILE
        if self.max_minutes is not None and time.monotonic() - self.started >= 60 * self.max_minutes:
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
