"""What the ranks tell each other beside the run: through a store of their own, which no hanging collective holds up.

Only the thread here speaks with the store, which lies in rank 0's process: where that is stopped, the thread hangs, and
nobody else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import NamedTuple

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from train.distributed import Ranks, on_first_rank
from train.rank_states import RankState

_END = "end"
_CONNECT = timedelta(seconds=20)


class Heard(NamedTuple):
    """The newest state of a rank, and when it came, on the clock of time.monotonic()."""

    state: RankState
    at: float


class News:
    """Tells every `tick` seconds what this rank does, and asks for the states of all while `wants_all` is set, and now
    and then, the more rarely the more they are.

    A rank that ends the run sets its `proposal`: the first one is the `verdict` on all ranks.
    """

    def __init__(self, store: TCPStore, ranks: Ranks, tell: Callable[[], RankState], tick: float) -> None:
        """Every rank comes here at the same time, and then knows all others."""
        self.wants_all = False
        self.proposal: str | None = None
        self.verdict: str | None = None
        self.answered = time.monotonic()  # the store, the last time
        self.heard: dict[int, Heard] = {}
        self._store, self._rank, self._tell, self.tick = store, ranks.rank, tell, tick
        self._keys = [str(rank) for rank in range(ranks.world_size)]
        self._told, self._closed = 0, threading.Event()
        store.set(str(ranks.rank), tell().dump())
        ranks.barrier()
        self._hear()

    def begin(self) -> None:
        threading.Thread(target=self._run, name="watchdog-news", daemon=True).start()

    def close(self) -> None:
        """The thread is not waited for: it may hang."""
        self._closed.set()

    def states(self, quiet: float) -> list[RankState]:
        """The newest state of every rank; silent are those that told nothing for `quiet` seconds, this rank never."""
        now = time.monotonic()
        is_cut_off = now - self.answered >= quiet  # then nobody can be heard, and it is rank 0 that does not answer
        silent = {0} if is_cut_off else {rank for rank, (_, at) in self.heard.items() if now - at >= quiet}
        told = [replace(state, is_silent=rank in silent) for rank, (state, _) in self.heard.items()]
        return [self._tell() if state.rank == self._rank else state for state in told]

    def _run(self) -> None:
        try:
            while not self._closed.wait(self.tick):
                self._exchange()
        except RuntimeError:
            return  # rank 0's process has ended: `answered` grows old

    def _exchange(self) -> None:
        self._store.set(str(self._rank), self._tell().dump())
        if self.proposal is not None:
            self.verdict = self._store.compare_set(_END, "", self.proposal).decode()
        elif self._store.check([_END]):
            self.verdict = self._store.get(_END).decode()
        self._told += 1
        if self.wants_all or self.verdict is not None or self._told % len(self._keys) == 0:
            self._hear()
        self.answered = time.monotonic()

    def _hear(self) -> None:
        now, heard = time.monotonic(), dict(self.heard)
        for text in self._store.multi_get(self._keys):
            state = RankState.load(text)
            if state.rank not in heard or heard[state.rank].state.count != state.count:
                heard[state.rank] = Heard(state, now)
        self.heard = heard


def open_store(ranks: Ranks) -> TCPStore | None:
    """A store in rank 0's process, on a free port; None on all ranks where one of them cannot reach it."""
    host = os.environ["MASTER_ADDR"]
    server = _connect(host, 0, is_server=True) if ranks.rank == 0 else None
    port = on_first_rank(ranks, lambda: server.port if server else 0)
    store = server or (_connect(host, port, is_server=False) if port else None)
    return store if ranks.sum([int(store is not None)]) == [ranks.world_size] else None


def _connect(host: str, port: int, *, is_server: bool) -> TCPStore | None:
    try:
        return TCPStore(host, port, is_master=is_server, timeout=_CONNECT, wait_for_workers=False)
    except RuntimeError:
        return None
