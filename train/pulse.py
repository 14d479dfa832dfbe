"""What a rank says that it does: one assignment of its main thread at every change, for those who watch over it."""

from __future__ import annotations

import threading
import time
from typing import NamedTuple

from train.start_times import StartTimes

WAITING = "waits for the other ranks"


class Said(NamedTuple):
    """What a rank does, as a verb and its object, and since when on the clock of time.monotonic()."""

    doing: str
    since: float


class Pulse:
    """Every `says` is a sign of progress, so whoever does something for long says it again and again.

    `step` is the number of steps that are done, None before the first one of this process. `loses_nothing` while the
    process could end at once: its first step is under way, and the newest checkpoint is that of the step before.
    """

    def __init__(self) -> None:
        self.said = Said("starts", time.monotonic())
        self.step: int | None = None
        self.loses_nothing = False
        self.start = StartTimes()
        self.helper: int | None = None  # clock of a thread: while it works, so does the rank

    def says(self, doing: str) -> str:
        """From now on the rank does this; what it did before."""
        before = self.said.doing
        self.said = Said(doing, time.monotonic())
        return before

    def is_helped_by_this_thread(self) -> None:
        """The main thread may wait for the calling thread, however long that works."""
        self.helper = time.pthread_getcpuclockid(threading.get_ident())
