"""Requests to stop: a signal only sets a flag; the ranks agree on the step at which all of them stop."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from types import FrameType

_STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl


class StopRequest:
    """Set by TERM, INT or USR1; a second INT ends the process at once."""

    def __init__(self) -> None:
        self.reason: str | None = None

    def install(self) -> None:
        for number in _STOP:
            signal.signal(number, self._ask)
        if sys.platform == "linux":
            # Where torchrun is killed its workers would train on alone, and hold the run folder against a new start.
            ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGTERM)

    def wait(self, seconds: float) -> None:
        """Return when a request comes, or after `seconds`."""
        end = time.monotonic() + seconds
        while self.reason is None and time.monotonic() < end:
            time.sleep(0.05)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
