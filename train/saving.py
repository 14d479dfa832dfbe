"""Checkpoints beside training: a thread of each rank commits what a step has copied to host memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from train.checkpoint import is_full
from train.distributed import Ranks, on_first_rank
from train.errors import BertmaeError
from train.monitor.logs import log


class Saves:
    """The commits of a run: at most one at a time, written by rank 0, and all ranks hear how each one ended.

    The thread shares the interpreter with the steps: what it does for long (sending, writing, fsync, checksums) holds
    no lock.
    """

    def __init__(self) -> None:
        self.step: int | None = None  # of the commit under way: equal on all ranks
        self._began = time.monotonic()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._commit: Future[str] | None = None
        self._speaks = True  # rank 0, where the end of a commit is that of the checkpoint

    @property
    def has_ended(self) -> bool:
        """Whether this rank knows the end of a checkpoint of which the others have not heard."""
        return self._speaks and self._commit is not None and self._commit.done()

    def minutes_since_last(self) -> float:
        """Minutes since the last commit began, or since the start where there was none."""
        return (time.monotonic() - self._began) / 60

    def begin(self, ranks: Ranks, step: int, commit: Callable[[], str]) -> None:
        """Start `commit` on every rank, after `end` has told the end of the one before; rank 0's result is heard."""
        if self.step is not None:
            raise RuntimeError(f"the commit of step {self.step} is under way")
        self.step, self._began, self._speaks = step, time.monotonic(), ranks.rank == 0
        self._commit = self._thread.submit(commit)

    def end(self, ranks: Ranks, *, last: bool) -> tuple[int, str | None] | None:
        """Wait for the commit under way; its step and what it returned, or None where none is under way.

        In place of the result stands None where the disk is full, for a later commit may find room; after the `last`
        one there is none. That, and every other failure, all ranks raise.
        """
        if self.step is None:
            return None
        step, self.step = self.step, None
        heard = on_first_rank(ranks, lambda: self._result(last))
        if not self._speaks:
            self._result(last)  # has given rank 0 its part: what it held may be written over
        return step, heard

    def close(self) -> None:
        """Let a commit under way finish, whatever ended the run; nobody is left to raise what it met."""
        self._thread.shutdown()
        if self._commit is not None and (error := self._commit.exception()):
            log.warning("%s", error)

    def _result(self, last: bool) -> str | None:
        commit, self._commit = self._commit, None
        try:
            return commit.result() if commit else None
        except BertmaeError as error:
            if last or not is_full(error):
                raise
            return None
