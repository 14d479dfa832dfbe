"""Which micro-batch is tried next, and which one is taken: pure functions of what was measured.

Legend: R ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from train.config import Config

_SLOWER_IN_A_ROW = 2  # larger ones are not tried any more


@dataclass(frozen=True, slots=True)
class Trial:
    """A micro-batch of so many rows as it was measured."""

    rows: int
    seconds: float  # of an optimizer step of the whole global batch, on the slowest rank
    peaks_R: tuple[float, ...]  # bytes of each rank; infinite where memory ran out


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes that each rank has taken before the first trial, and that it may take."""

    before_R: tuple[float, ...]
    limits_R: tuple[float, ...]

    def holds(self, peaks_R: Sequence[float]) -> bool:
        """Whether so much fits on every rank."""
        return all(peak <= limit for peak, limit in zip(peaks_R, self.limits_R, strict=True))


def candidates(config: Config, world_size: int) -> list[int]:
    """Every size, rising, that divides each global batch of the run evenly over so many devices; there may be none."""
    batch, data = config.batch, config.data
    sizes = [batch.global_batch_size, *(change.rows for change in batch.global_batch_size_at)]
    ratios = [change.length // data.sequence_length for change in data.sequence_length_at]
    step = math.lcm(*ratios) if batch.same_tokens_per_step else 1
    share, rest = divmod(math.gcd(*sizes), world_size)
    return [] if rest else [rows for rows in range(step, share + 1, step) if share % rows == 0]


def predict(trials: Sequence[Trial], room: Room, rows: int) -> tuple[float, ...]:
    """Bytes of each rank with so many rows: on the line through the two largest trials below, or through the only one
    and what was taken before it."""
    below = sorted((trial for trial in trials if trial.rows < rows), key=lambda trial: trial.rows)
    if not below:
        return room.before_R
    last = below[-1]
    earlier, earlier_R = (below[-2].rows, below[-2].peaks_R) if len(below) > 1 else (0, room.before_R)
    reach = (rows - last.rows) / (last.rows - earlier)
    pairs = zip(earlier_R, last.peaks_R, strict=True)
    return tuple(peak + reach * max(0.0, peak - before) for before, peak in pairs)


def choose(trials: Sequence[Trial], room: Room) -> Trial | None:
    """The fastest that fits on every rank, of equals the smallest; None where none does."""
    fitting = [trial for trial in trials if room.holds(trial.peaks_R)]
    return min(fitting, key=lambda trial: (trial.seconds, trial.rows), default=None)


def next_size(sizes: Sequence[int], trials: Sequence[Trial], room: Room) -> int | None:
    """The size to try next, or None: the powers of two in their order as long as they fit and larger ones may be
    faster, then what lies between half and twice the fastest."""
    tried = {trial.rows for trial in trials}
    too_large = min((trial.rows for trial in trials if not room.holds(trial.peaks_R)), default=math.inf)

    def may_fit(rows: int) -> bool:
        return rows < too_large and room.holds(predict(trials, room, rows))

    powers = [rows for rows in sizes if rows == sizes[0] or rows & (rows - 1) == 0]
    rising = next((rows for rows in powers if rows not in tried), None)
    if rising is not None and may_fit(rising) and not _grows_slower(powers, trials):
        return rising
    best = choose(trials, room)
    if best is None:
        return None
    near = (rows for rows in sizes if best.rows / 2 <= rows <= best.rows * 2)
    return next((rows for rows in near if rows not in tried and may_fit(rows)), None)


def _grows_slower(powers: Sequence[int], trials: Sequence[Trial]) -> bool:
    """Whether the last powers were all slower than some smaller one."""
    seconds = [trial.seconds for trial in sorted(trials, key=lambda trial: trial.rows) if trial.rows in powers]
    head, tail = seconds[:-_SLOWER_IN_A_ROW], seconds[-_SLOWER_IN_A_ROW:]
    return bool(head) and min(tail) > min(head)
