"""Owns what a check says: ok, warning or wrong, from one rank or from many as one."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import NamedTuple

from train.distributed import Ranks
from train.errors import BertmaeError

_NAMED = 4  # ranks that one line names


class Finding(NamedTuple):
    """One line: its level, and what was found; for all but "ok" with the way out."""

    level: str
    text: str

    def __str__(self) -> str:
        return f"{self.level:<7} {self.text}"


def ok(text: str) -> Finding:
    return Finding("ok", text)


def warning(text: str) -> Finding:
    return Finding("warning", text)


def wrong(text: str) -> Finding:
    return Finding("wrong", text)


def guarded(action: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """What the action finds, or the expected failure in which it ends."""
    try:
        return list(action())
    except BertmaeError as error:
        return [wrong(str(error))]


def on_every_rank(ranks: Ranks, action: Callable[[], Sequence[Finding]]) -> list[Finding]:
    """Run `action` on every rank; the same findings on all. What some ranks find names them and their hosts.

    Where all is well it is rank 0 that says so; a line that is the same everywhere names nobody.
    """
    texts_R = ranks.gather(json.dumps(guarded(action)))
    found_R = [[Finding(*finding) for finding in json.loads(text)] for text in texts_R]
    bad = dict.fromkeys(finding for found in found_R for finding in found if finding.level != "ok")
    if not bad:
        return found_R[0]
    named = []
    for finding in bad:
        where = [rank for rank, found in enumerate(found_R) if finding in found]
        words = "" if len(where) == ranks.world_size else f" ({_named(ranks, where)})"
        named.append(Finding(finding.level, finding.text + words))
    return named


def place_of(ranks: Ranks, rank: int) -> str:
    """A rank and its host, as people look for them."""
    return f"rank {rank} on {ranks.hosts_R[rank]}"


def _named(ranks: Ranks, where: list[int]) -> str:
    more = f" and {len(where) - _NAMED} more ranks" if len(where) > _NAMED else ""
    return ", ".join(place_of(ranks, rank) for rank in where[:_NAMED]) + more
