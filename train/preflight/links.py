"""How the ranks reach each other: their clocks, the bandwidth of all of them together, and of each link of a ring.

Legend: R ranks.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from train.distributed import Ranks
from train.preflight.findings import Finding, ok, place_of, warning

_SKEW = 1.0  # seconds: logs of several hosts are no longer to be read side by side
_ROUNDS = 5
_LINK_ROUNDS = 4  # the first one opens the connections; on a busy host one alone is chance
_BYTES = {"cuda": 256 << 20, "cpu": 8 << 20}
_SLOW_SHARE = 1 / 3  # of the median link
_SLOW_LINK = 0.1e9  # bytes a second, a network of 1 Gbit


def check_links(ranks: Ranks) -> list[Finding]:
    """The same findings on all ranks; none for a rank alone."""
    if ranks.world_size == 1:
        return []
    return [_clocks(ranks), *_bandwidth(ranks)]


def _clocks(ranks: Ranks) -> Finding:
    skews_R = [0.0] * ranks.world_size
    smallest_R = [float("inf")] * ranks.world_size
    for _ in range(_ROUNDS):  # ranks leave a barrier at different times: the smallest difference counts
        ranks.barrier()
        times_R = [json.loads(text) for text in ranks.gather(json.dumps(time.time()))]
        skews_R = [seconds - times_R[0] for seconds in times_R]
        smallest_R = [min(pair, key=abs) for pair in zip(smallest_R, skews_R, strict=True)]
    worst = max(range(ranks.world_size), key=lambda rank: abs(smallest_R[rank]))
    skew = smallest_R[worst]
    if abs(skew) > _SKEW:
        way = "ahead of" if skew > 0 else "behind"
        where = place_of(ranks, worst)
        return warning(f"clocks: that of {where} is {abs(skew):,.1f} s {way} rank 0's: set it by a time service (NTP)")
    return ok(f"clocks: at most {abs(skew) * 1e3:,.0f} ms from rank 0's")


def _bandwidth(ranks: Ranks) -> list[Finding]:
    data = torch.ones(_BYTES[ranks.device.type] // 4, device=ranks.device)
    own = [_all_reduce_seconds(ranks, data), _link_seconds(ranks, data)]
    times_R2 = [json.loads(text) for text in ranks.gather(json.dumps(own))]
    size, share = data.nbytes, 2 * (ranks.world_size - 1) / ranks.world_size  # of the bytes, over each link of a ring
    together, links_R = max(pair[0] for pair in times_R2), [size / pair[1] for pair in times_R2]
    slowest = min(range(ranks.world_size), key=links_R.__getitem__)
    line = f"all-reduce of {size >> 20} MB: {share * size / together / 1e9:,.2f} GB/s; slowest link "
    return [ok(line + _link(ranks, slowest, links_R)), *slow_links(ranks, links_R)]


def slow_links(ranks: Ranks, links_R: list[float]) -> list[Finding]:
    """`links_R` are bytes a second into each rank from the one before it; hosts are compared with hosts."""
    hosts_R, found = ranks.hosts_R, []
    for crosses in (False, True):
        kind = [rank for rank in range(len(links_R)) if (hosts_R[rank] != hosts_R[rank - 1]) == crosses]
        typical = statistics.median(links_R[rank] for rank in kind) if kind else 0.0
        limit = max(_SLOW_SHARE * typical, _SLOW_LINK if crosses else 0.0)
        found += [rank for rank in kind if links_R[rank] < limit]
    advice = "look at cable, port and network interface (NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME), or leave the host out"
    return [warning(f"slow link {_link(ranks, rank, links_R)}: {advice}") for rank in found]


def _link(ranks: Ranks, rank: int, links_R: list[float]) -> str:
    before = (rank - 1) % len(links_R)
    return f"{place_of(ranks, before)} to {place_of(ranks, rank)}, {links_R[rank] / 1e9:,.2f} GB/s"


def _all_reduce_seconds(ranks: Ranks, data: torch.Tensor) -> float:
    """Of the best of some; the first ones open the connections."""
    return min(_seconds(ranks, lambda: dist.all_reduce(data, op=dist.ReduceOp.MAX)) for _ in range(_ROUNDS))


def _link_seconds(ranks: Ranks, data: torch.Tensor) -> float:
    """Of the link into this rank, one link of the ring after the other, so that none takes from another."""
    best = float("inf")
    for _ in range(_LINK_ROUNDS):
        for source in range(ranks.world_size):
            target = (source + 1) % ranks.world_size
            seconds = _seconds(ranks, lambda s=source, t=target: _pass_on(ranks.rank, s, t, data))  # type: ignore[misc]
            best = min(best, seconds) if ranks.rank == target else best
    return best


def _pass_on(rank: int, source: int, target: int, data: torch.Tensor) -> None:
    if rank == source:
        dist.send(data, target)
    elif rank == target:
        dist.recv(data, source)


def _seconds(ranks: Ranks, action: Callable[[], object]) -> float:
    ranks.barrier()
    began = time.perf_counter()
    action()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)
    return time.perf_counter() - began
