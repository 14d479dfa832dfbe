"""The terminal during training: a bar where there is a terminal, a line per log interval elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from tqdm import tqdm

from train.monitor.logs import log


class Progress:
    """Shows rank 0's records."""

    def __init__(self, steps: int, first_step: int, rank: int) -> None:
        self._steps = steps
        self.saved_step: int | None = None  # of the newest checkpoint of this start
        shown = rank == 0 and sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=first_step, unit="step", dynamic_ncols=True) if shown else None

    def show(self, record: Mapping[str, float]) -> None:
        loss, speed, step = record["loss"], record["tokens_per_second"], int(record["step"])
        if self._bar is None:
            left = (self._steps - step) * record["step_seconds"]
            log.info("step %d of %d  loss %.4f  %.0f tokens/s  %s left", step, self._steps, loss, speed, duration(left))
            return
        saved = "" if self.saved_step is None else f", saved {self.saved_step}"
        self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} tokens/s{saved}", refresh=False)
        self._bar.update(step - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as people say them: 42 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    whole = round(seconds)
    for size, unit, smaller, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // smaller} {small_unit}"
    return f"{whole} s"
