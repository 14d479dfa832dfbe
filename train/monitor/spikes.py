"""When a loss is a spike: an exponentially weighted mean and variance of the losses before it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from train.config import Incidents

_SMALLEST_DEVIATION = 1e-3  # of the mean: a loss that hardly moves has none that means anything


@dataclass(frozen=True, slots=True)
class Spike:
    """A loss far above what the losses before it let expect."""

    step: int
    loss: float
    expected: float
    deviations: float


@dataclass(slots=True)
class SpikeRule:
    """Judges the total loss of each step, in their order; plain fp64 arithmetic, so all ranks judge alike.

        a spike:    loss > mean + n * deviation          deviation = max(sqrt(variance), mean / 1000)
        d = min(loss, mean + n / 2 * deviation) - mean   a = 2 / (window + 1)
        mean <- mean + a d                               variance <- (1 - a) (variance + a d^2)

    The first loss is the first mean, with variance 0. A spike counts as half the threshold, so that it hardly hides
    those that follow it, while a loss that stays at a new level is the expected one some tens of steps later. A loss
    that is not finite is no spike and does not count.
    """

    seen: int = 0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, state: Mapping[str, float]) -> SpikeRule:
        """As `state()` gave it; an empty one for a run that begins."""
        return cls(int(state["seen"]), state["mean"], state["variance"]) if state else cls()

    def state(self) -> dict[str, float]:
        """All that later judgements depend on; JSON keeps every bit of it."""
        return asdict(self)

    def judge(self, step: int, loss: float, settings: Incidents) -> Spike | None:
        """Take in the loss of the next step; the spike that it is, if it is one."""
        limit = settings.spike_deviations
        if limit is None or not math.isfinite(loss):
            return None
        if not self.seen:
            self.mean = loss
        deviation = max(math.sqrt(self.variance), abs(self.mean) * _SMALLEST_DEVIATION)
        expected, deviations = self.mean, (loss - self.mean) / deviation if deviation else 0.0
        distance = min(loss - self.mean, limit / 2 * deviation)
        weight = 2 / (settings.spike_window + 1)
        self.mean += weight * distance
        self.variance = (1 - weight) * (self.variance + weight * distance * distance)
        self.seen += 1
        if self.seen <= settings.spike_warmup_steps or deviations <= limit:
            return None
        return Spike(step, loss, expected, deviations)
