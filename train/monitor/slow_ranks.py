"""Which rank holds the others up: each one's own work, compared over the ranks at every log interval.

Own work is the wait for data and the forward pass: what follows waits for the other ranks in its collectives.

Legend: R ranks.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from train.distributed import Ranks

RATIO = 1.5  # of the median over the ranks: above it a rank is slow
IN_A_ROW = 3  # log intervals after which it is said: a single pause is none
_LEAST = 0.005  # seconds of a step above the median: less is not worth a warning


@dataclass(slots=True)
class SlowRanks:
    """Every rank holds one, and comes to `measure` at the same step."""

    ranks: Ranks
    _rank: int = -1  # the one that was slow in the last interval
    _times: int = 0  # intervals in a row

    def measure(self, seconds: float) -> tuple[dict[str, float], str | None]:
        """Given this rank's own seconds of a step: the statistics for the record, and a sentence where one is slow."""
        if self.ranks.world_size == 1:
            return {}, None
        all_R = [micro / 1e6 for micro in self.ranks.of_all(round(seconds * 1e6))]
        middle, worst = statistics.median(all_R), max(all_R)
        rank = all_R.index(worst)
        record = {"min": min(all_R), "median": middle, "max": worst}
        numbers = {f"rank_work_{name}_seconds": round(value, 6) for name, value in record.items()}
        return numbers | {"slowest_rank": rank}, self._judge(rank, worst, middle)

    def _judge(self, rank: int, worst: float, middle: float) -> str | None:
        is_slow = worst > RATIO * middle and worst - middle > _LEAST
        self._times = (self._times + 1 if rank == self._rank else 1) if is_slow else 0
        self._rank = rank if is_slow else -1
        if self._times != IN_A_ROW:
            return None
        host = self.ranks.hosts_R[rank] if self.ranks.hosts_R else "?"
        return (
            f"rank {rank} on {host} is slow: {worst:.3g} s of a step for data and forward, the median of the ranks is "
            f"{middle:.3g} s; the others wait for it"
        )
