"""Owns the stream of optimizer steps that training consumes: batches prepared ahead by one thread."""

import queue
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol, Self

import torch

from train.data.batch import Batch
from train.data.order import Cursor, Indices, Share
from train.data.packing import RowPlan

_NOTHING: Mapping[int, int] = MappingProxyType({})
_STEPS_AHEAD = 2
_STEPS_FETCHED_AHEAD = 8  # of those prepared


class Walk(Protocol):
    """What is read in which order: a pure function of the cursor."""

    def batches(self, cursor: Cursor, share: Share) -> list[Batch]:
        """This rank's micro-batches of the global batch at `cursor`."""

    @property
    def is_remote(self) -> bool:
        """Whether there are blocks to fetch ahead."""

    def prefetch(self, cursor: Cursor, share: Share) -> None:
        """Have the blocks of this rank's part of the global batch at `cursor` fetched in the background."""

    def advance(self, cursor: Cursor, share: Share) -> Cursor:
        """The cursor after the global batch at `cursor`."""

    def at(self, cursor: Cursor, step: int) -> Cursor:
        """The cursor at the beginning of optimizer step `step`, where a schedule may change what is read."""

    def is_over(self, cursor: Cursor, share: Share) -> bool:
        """Whether no global batch is left."""

    def state(self, cursor: Cursor) -> dict[str, Any]:
        """What a checkpoint keeps to go on at `cursor`: the same on every rank."""

    @property
    def plans(self) -> list[tuple[str, float, RowPlan]]:
        """(name, share of all rows read, plan) of each data set."""

    @property
    def damage(self) -> dict[str, str]:
        """What was wrong with the damaged blocks that this rank met so far, by names that are the same on all ranks."""

    def row_names(self, row_ids_N: Indices, epoch: int, cursor: Cursor) -> list[str]:
        """SOURCE/EPOCH/ROW of rows (no fillers) of a batch of `epoch`, `cursor` being where its step ended."""

    def progress(self, cursor: Cursor) -> dict[str, float]:
        """Epochs done, for the metrics."""


Step = tuple[list[Batch], Cursor]


class TrainStream:
    """Optimizer steps for one rank: (its micro-batches, the cursor after the step); endless unless the walk ends.

    One thread prepares steps ahead; it starts with the first step asked for. Make the stream after the rank has
    chosen its device. What was prepared and not consumed is lost without harm: the cursor alone says where to go on.
    """

    def __init__(
        self,
        walk: Walk,
        share: Share,
        cursor: Cursor,
        step: int = 0,
        *,
        sizes: Mapping[int, int] = _NOTHING,
        skips: Mapping[int, int] = _NOTHING,
        flops: Callable[[Batch, int], int] | None = None,
    ) -> None:
        """Begin at `cursor`, before optimizer step `step` (counted from 0).

        `sizes` has the rows of a global batch from a step on, in rising order; before the first, those of `share`
        hold. `skips` {k: n}: after k completed steps the cursor moves over the rows of n steps, which nobody reads.
        The cursor that a step ends with lies before such a jump. `flops` counts the operations of a micro-batch of a
        step, here and not in the training loop.
        """
        self.walk = walk
        self._share = share
        self._sizes = sizes
        self._skips = skips
        self._flops = flops
        self.cursor = cursor  # where it began
        self._step = step
        self._fetched = cursor, step  # up to here blocks were asked for
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        # One item for each free place. Not threading.Semaphore, whose Python costs the main thread twice the time.
        self._free_places: queue.SimpleQueue[None] = queue.SimpleQueue()
        for _ in range(_STEPS_AHEAD):
            self._free_places.put(None)
        self._ready: queue.SimpleQueue[Step | BaseException] = queue.SimpleQueue()
        self._next: list[Step | BaseException] = []  # taken from `_ready`: one or none
        self._thread = threading.Thread(target=self._produce, name="train-stream", daemon=True)
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        """The next step. Raises what went wrong while it was prepared; after that, or once closed, StopIteration."""
        if self._closed:
            raise StopIteration
        self.is_ready(None)
        step = self._next.pop()
        if isinstance(step, BaseException):
            self.close()
            raise step
        self._free_places.put(None)
        return step

    def is_ready(self, seconds: float | None) -> bool:
        """Whether the next step is there, or comes within `seconds` (None: it is waited for)."""
        if not self._thread.ident:
            self._thread.start()
        if not self._next:
            try:
                self._next.append(self._ready.get(timeout=seconds))
            except queue.Empty:
                return False
        return True

    def peek(self) -> list[Batch] | None:
        """The micro-batches of the next step where they are there already; the step stays the next one."""
        if self._closed or not self.is_ready(0) or isinstance(self._next[0], BaseException):
            return None
        return self._next[0][0]

    def is_over(self, cursor: Cursor, step: int) -> bool:
        """Whether nothing is left to read at `cursor`, before optimizer step `step`."""
        return self.walk.is_over(self._begin(cursor, step), self._share_at(step))

    def close(self) -> None:
        """Stop the prefetch thread and wait for it: at most the time of one step."""
        self._closed = True
        self._free_places.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _begin(self, cursor: Cursor, step: int) -> Cursor:
        """Where step `step` reads, when `cursor` is where the step before it ended."""
        cursor = self.walk.at(cursor, step)
        for skipped in range(step, step + self._skips.get(step, 0)):
            # As many rows as the steps from here on had when they were read.
            cursor = self.walk.advance(cursor, self._share_at(skipped))
        return cursor

    def _share_at(self, step: int) -> Share:
        rows = [rows for at, rows in self._sizes.items() if at <= step]
        return replace(self._share, global_batch_size=rows[-1]) if rows else self._share

    def _produce(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)  # a new thread begins on device 0, whatever the rank's device is
            cursor = self.cursor
            while True:
                self._free_places.get()
                if self._closed:
                    return
                if self.is_over(cursor, self._step):
                    self._ready.put(StopIteration())
                    return
                cursor, share = self._begin(cursor, self._step), self._share_at(self._step)
                if self.walk.is_remote:
                    self.walk.prefetch(cursor, share)  # what found no place when it was asked for ahead
                    self._fetch_ahead()
                batches = self.walk.batches(cursor, share)
                if self._flops:
                    batches = [replace(batch, flops=self._flops(batch, self._step)) for batch in batches]
                self._step += 1
                cursor = self.walk.advance(cursor, share)
                self._ready.put((batches, cursor))
        except BaseException as error:  # noqa: BLE001 - the consumer raises it, with this thread's traceback
            self._ready.put(error)

    def _fetch_ahead(self) -> None:
        """Ask for the blocks of the steps ahead: which they are is a function of the cursor alone."""
        cursor, step = self._fetched
        while step < self._step + _STEPS_FETCHED_AHEAD and not self.is_over(cursor, step):
            cursor, share = self._begin(cursor, step), self._share_at(step)
            self.walk.prefetch(cursor, share)
            cursor, step = self.walk.advance(cursor, share), step + 1
        self._fetched = cursor, step
