"""What is known of every rank when a run makes no progress: who is behind, in words."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from train.monitor.progress import duration
from train.pulse import WAITING

_NAMED = 8  # ranks of one sentence


@dataclass(frozen=True, slots=True)
class RankState:
    """What a rank told of itself; `count` grows with every time it does."""

    rank: int
    host: str
    process: int
    doing: str
    step: int | None
    seconds: float  # since its last sign of progress
    count: int
    has_dumped: bool = False  # its stacks are in its log
    is_silent: bool = False  # added by who waited in vain for it to tell more

    def dump(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str | bytes) -> RankState:
        return cls(**json.loads(text))


def behind(states: Sequence[RankState], limit: float) -> list[RankState]:
    """The ranks that the others wait for; all, where nothing tells them apart.

    Those that do not answer; else of those that do something themselves, and have for half the `limit` in seconds, the
    ones with the fewest steps.
    """
    if silent := [state for state in states if state.is_silent]:
        return silent
    working = [state for state in states if state.doing != WAITING and state.seconds >= limit / 2]
    if not working:
        return list(states)
    fewest = min(_steps(state) for state in working)
    return [state for state in working if _steps(state) == fewest]


def sentence(states: Sequence[RankState], limit: float) -> str:
    """Which ranks are behind and in what they are, and what the others do."""
    late = behind(states, limit)
    told = [_of_one(state) for state in late[:_NAMED]]
    if len(late) > _NAMED:
        told.append(f"{len(late) - _NAMED:,} further ranks are as far behind")
    ranks_by_doing: dict[str, list[int]] = {}
    for state in states:
        if state not in late:
            ranks_by_doing.setdefault(_doing(state), []).append(state.rank)
    told += [_of_several(ranks, doing) for doing, ranks in ranks_by_doing.items()]
    return f"no progress for {duration(limit)}: {'; '.join(told)}"


def _steps(state: RankState) -> int:
    return -1 if state.step is None else state.step


def _doing(state: RankState) -> str:
    if state.step is None or state.doing == WAITING:
        return state.doing
    return f"{state.doing} after step {state.step}"


def _of_one(state: RankState) -> str:
    name = f"rank {state.rank} ({state.host})"
    if state.is_silent:
        return f"{name} does not answer, last heard of: {_doing(state)}"
    return f"{name} {_doing(state)} since {duration(state.seconds)}"


def _of_several(ranks: Sequence[int], doing: str) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} {doing}"
    verb, _, rest = doing.partition(" ")
    names = ", ".join(map(str, ranks[:_NAMED])) + (f" and {len(ranks) - _NAMED:,} more" if ranks[_NAMED:] else "")
    return f"ranks {names} {verb.removesuffix('s')} {rest}".rstrip()
