"""Where the time goes from the start of the process to its first optimizer step: seconds of each part."""

from __future__ import annotations

import os
import time
from pathlib import Path


class StartTimes:
    """Parts follow each other: `done` gives the time since the part before to the one that has just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.monotonic() - age()
        self._is_over = False

    def done(self, part: str) -> None:
        """This part has ended, once more perhaps. Nothing after the first step."""
        if self._is_over:
            return
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now

    def end(self, part: str) -> str | None:
        """The last part has ended: the sentence on all of them; None where it was said before."""
        if self._is_over:
            return None
        self.done(part)
        self._is_over = True
        words = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.seconds.items())
        return f"The start took {sum(self.seconds.values()):.1f} s to the first step: {words}."


def age() -> float:
    """Seconds since the start of this process, as the kernel counts; 0 where it does not say."""
    try:
        # The name, the second field, is in brackets and may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError):
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
