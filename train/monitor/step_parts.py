"""How long this rank's forward, backward and optimizer take, step by step; on a GPU by its own clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARTS = ("forward", "backward", "optimizer")
_Mark = float | torch.cuda.Event


class StepParts:
    """Marks around the parts; on a GPU events in its queue, so that no step waits for being measured.

    What backward and optimizer take has the waiting for other ranks in it; forward has not, below ZeRO stage 3.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, _Mark, _Mark]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is queued within belongs to this part."""
        before = self._mark()
        yield
        self._marks.append((name, before, self._mark()))

    def take(self) -> dict[str, float]:
        """Seconds of each part since the last call. The device has done all of it: its results were read."""
        seconds = dict.fromkeys(PARTS, 0.0)
        for name, before, after in self._marks:
            seconds[name] += _between(before, after)
        self._marks.clear()
        return seconds

    def _mark(self) -> _Mark:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(before: _Mark, after: _Mark) -> float:
    if isinstance(before, float) or isinstance(after, float):
        return float(after) - float(before)  # type: ignore[arg-type]
    after.synchronize()
    return float(before.elapsed_time(after)) / 1000
