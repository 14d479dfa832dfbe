"""Ends a run that hangs, so that it is started again: first the stacks of all threads go to the log of every rank, and
one line says which rank is behind.

Every rank has a guard, a thread that waits for nothing. A rank ends the run when it has shown no progress for too long;
one that waits for others does so only where nobody is left to do it: all wait, or some rank does not answer.

The guard also answers a request to stop that comes during the first step. Its compilation can take minutes, a scheduler
waits for seconds, and there is nothing to save.
"""

from __future__ import annotations

import faulthandler
import json
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from train.config import Config
from train.data.remote import is_remote
from train.distributed import Ranks
from train.errors import StoppedError, UserError
from train.launch import tell_launch
from train.monitor import events
from train.monitor.logs import log
from train.pulse import WAITING
from train.rank_news import News, open_store
from train.rank_states import RankState, sentence
from train.signals import STOP_FILE, StopRequest, who_asked

_LAST_WORDS = 8.0  # seconds for all ranks to write their stacks
_PATIENCE = 15.0  # seconds after which a rank ends without last words: its disk may be what hangs
_LOCKED = 20.0  # seconds after the limit: a thread that still has not looked waits for the interpreter's lock
_EXIT_CODE = 1
_FIRST_STEP = 4.0  # seconds in which a first step may end by itself after a request to stop


class Verdict(NamedTuple):
    """How all ranks end: with which exit code, and in whose words."""

    rank: int
    code: int
    words: str

    def dump(self) -> str:
        return json.dumps(self)

    @classmethod
    def load(cls, text: str) -> Verdict:
        return cls(*json.loads(text))


class Limits(NamedTuple):
    """Seconds without progress after which a run hangs: before the first step of a process (None: never), and later."""

    start: float | None
    later: float


@contextmanager
def watch_over(config: Config, ranks: Ranks, stop: StopRequest) -> Iterator[None]:
    """Within this context a run that hangs ends with exit code 1; every rank enters it at the same time."""
    limits = limits_of(config)
    if limits is None:
        yield
        return
    watchdog = Watchdog(ranks, limits, Path(config.run.directory), stop)
    try:
        yield
    finally:
        watchdog.close()


def limits_of(config: Config) -> Limits | None:
    """What the configuration allows, None where the watchdog is off. A store may be away for its own time on top."""
    section, data = config.watchdog, config.data
    if section.minutes is None:
        return None
    paths = [data.path or "", *(source.path for source in data.sources)]
    patience = data.store_patience_seconds if any(map(is_remote, paths)) else 0.0
    start = section.start_minutes
    return Limits(None if start is None else 60 * start + patience, 60 * section.minutes + patience)


class Watchdog:
    """The guard of one rank and its news of the others."""

    def __init__(self, ranks: Ranks, limits: Limits, run: Path, stop: StopRequest) -> None:
        self._ranks, self._limits, self._run = ranks, limits, run
        self._stop, self._asked_at = stop, math.inf
        self._pulse, self._file = ranks.pulse, (run / f"log-rank{ranks.rank}.txt").open("ab", buffering=0)
        self._host, self._count, self._has_dumped = socket.gethostname(), 0, False
        self._helped, self._helper_seconds = time.monotonic(), 0.0
        self._tick = min(1.0, limits.later / 20)
        self._closed = threading.Event()
        ranks.pulse.says(ranks.pulse.said.doing)
        store = open_store(ranks) if ranks.world_size > 1 else None
        self._news = News(store, ranks, self._state, self._tick + ranks.world_size / 1000) if store else None
        if ranks.world_size > 1 and store is None:
            where = os.environ["MASTER_ADDR"]
            log.warning("A rank cannot connect to a second port of %s: no rank will know what the others do", where)
        if self._news:
            self._news.begin()
        self._guard = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._guard.start()

    def close(self) -> None:
        """Watch no longer. Where the run is being ended this does not return: the process ends in it."""
        if self._news:
            self._news.close()
        self._closed.set()
        self._guard.join()
        faulthandler.cancel_dump_traceback_later()
        self._file.close()

    def _watch(self) -> None:
        while True:
            self._leave_first_step()
            limit = self._limit()
            if limit is None:
                faulthandler.cancel_dump_traceback_later()
            else:
                self._look(limit)
            if self._closed.wait(self._tick):
                return

    def _look(self, limit: float) -> None:
        # Where some library holds the interpreter's lock for ever, this thread stands still too; that timer does not.
        faulthandler.dump_traceback_later(limit + max(_LOCKED, limit / 10), exit=True, file=self._file)
        self._look_at_helper()
        if self._news:
            self._news.wants_all = self._age() > limit / 2
        if self._is_over(limit):
            self._end(limit)

    def _leave_first_step(self) -> None:
        """End where any rank was asked to stop and has not come to the end of its first step since."""
        verdict = self._verdict()
        if verdict and verdict.code == StoppedError.exit_code:
            self._end_as_asked(verdict)
        if self._stop.reason is None or not self._pulse.loses_nothing:
            self._asked_at = math.inf
            return
        self._asked_at = min(self._asked_at, time.monotonic())
        if time.monotonic() < self._asked_at + _FIRST_STEP:
            return
        if self._news is None:
            self._end_as_asked(self._stopped())
        else:
            self._news.proposal = self._stopped().dump()

    def _stopped(self) -> Verdict:
        codes_R = [self._stop.code() * (rank == self._ranks.rank) for rank in range(self._ranks.world_size)]
        why = who_asked(codes_R, self._stop.max_minutes)
        words = f"stopped in the first step of this start ({why}), which is not kept; the same command goes on"
        return Verdict(self._ranks.rank, StoppedError.exit_code, words)

    def _end_as_asked(self, verdict: Verdict) -> NoReturn:
        self._say(verdict.rank, verdict.words, "stop")
        code = tell_launch(verdict.code)
        if self._ranks.rank == 0:
            with suppress(UserError):  # then the next start says that it cannot be removed
                self._stop.remove(self._run / STOP_FILE)
        if self._news and self._ranks.rank == 0:
            time.sleep(3 * self._news.tick)  # the store is here: the others have heard by then
        os._exit(code)

    def _verdict(self) -> Verdict | None:
        text = self._news.verdict if self._news else None
        return None if text is None else Verdict.load(text)

    def _limit(self) -> float | None:
        return self._limits.start if self._pulse.step is None else self._limits.later

    def _age(self) -> float:
        """Seconds since the last sign of progress."""
        return time.monotonic() - max(self._pulse.said.since, self._helped)

    def _look_at_helper(self) -> None:
        """A thread that works takes time of the processor, be it only to copy what is written."""
        if self._pulse.helper is None:
            return
        with suppress(OSError):  # it has ended
            seconds = time.clock_gettime(self._pulse.helper)
            if seconds != self._helper_seconds:
                self._helper_seconds, self._helped = seconds, time.monotonic()

    def _is_over(self, limit: float) -> bool:
        if self._news and self._news.verdict is not None:
            return True
        if self._age() <= limit:
            return False
        if self._pulse.said.doing != WAITING:
            return True
        if self._news is None:
            return False  # the rank that it waits for has a guard of its own
        states = self._news.states(limit / 3)
        return any(state.is_silent for state in states) or all(state.seconds > limit for state in states)

    def _end(self, limit: float) -> None:
        last = threading.Timer(_PATIENCE, os._exit, [_EXIT_CODE])
        last.daemon = True
        last.start()
        states = self._news.states(limit / 3) if self._news else [self._state()]
        way_out = "the same command goes on from the last checkpoint"
        words = f"{sentence(states, limit)}; the stacks of all threads are in {self._run}/log-rank*.txt; {way_out}"
        verdict = Verdict(self._ranks.rank, _EXIT_CODE, words)
        if self._news and self._news.verdict is None:
            self._news.proposal = verdict.dump()
        self._wake(states)
        self._write("no progress: the stacks of all threads", _stacks())
        self._has_dumped = True
        if self._news:
            self._wait_for_others(self._news)
            verdict = self._verdict() or verdict
        self._say(verdict.rank, verdict.words, "hang")
        os._exit(verdict.code)

    def _wake(self, states: list[RankState]) -> None:
        """A stopped process of this host cannot write its stacks: it goes on to do that, and to end."""
        for state in states:
            if state.is_silent and state.host == self._host:
                with suppress(OSError):
                    os.kill(state.process, signal.SIGCONT)

    def _wait_for_others(self, news: News) -> None:
        """Until all have written their stacks; rank 0, in whose process the store is, leaves last."""
        end = time.monotonic() + _LAST_WORDS + 4 * news.tick
        while time.monotonic() < end and not all(heard.state.has_dumped for heard in news.heard.values()):
            time.sleep(news.tick / 4)
        news.close()
        if self._ranks.rank == 0:
            time.sleep(2 * news.tick)

    def _say(self, speaker: int, text: str, kind: str) -> None:
        """In every log, and on the terminal by the rank that saw it first."""
        if self._ranks.rank == speaker:
            os.write(2, f"\nbertmae: {text}\n".encode())
            events.append(self._run, self._pulse.step or 0, kind, text)
        self._write(text)

    def _write(self, text: str, more: bytes = b"") -> None:
        """Not through the loggers: a thread that hangs may hold their locks."""
        with suppress(OSError):
            self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR {text}\n".encode() + more)

    def _state(self) -> RankState:
        self._count += 1
        doing, step = self._pulse.said.doing, self._pulse.step
        return RankState(
            self._ranks.rank, self._host, os.getpid(), doing, step, self._age(), self._count, self._has_dumped
        )


def _stacks() -> bytes:
    """The stacks of all threads. Whoever writes them holds the interpreter's lock: not to a disk that may hang."""
    with tempfile.TemporaryFile() as copy:
        faulthandler.dump_traceback(copy, all_threads=True)
        copy.seek(0)
        return copy.read()
