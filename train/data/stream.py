"""Owns the stream of optimizer steps that training consumes, and the fixed batches that validation reads."""

import queue
import threading
from collections.abc import Iterator, Mapping
from typing import Self

import numpy as np
import torch

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from train.data.batch import Batch, make_batch
from train.data.order import FILLER_ROW, ORDER_VERSION, Cursor, EpochOrder, Share, advance, epoch_order
from train.data.packing import plan_rows
from train.data.reader import ShardReader

Step = tuple[list[Batch], Cursor]

_STEPS_AHEAD = 2
_VALIDATION_EPOCH = -1


class TrainStream:
    """Endless optimizer steps for one rank: (its micro-batches, the cursor after the step).

    One thread prepares steps ahead; it starts with the first step asked for. Make the stream after the rank has
    chosen its device. What was prepared and not consumed is lost without harm: the cursor alone says where to go on.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        sequence_length: int,
        seed: int,
        micro_batch_size: int,
        global_batch_size: int,
        rank: int,
        world_size: int,
        cursor: Cursor,
    ) -> None:
        """Plan the rows of the split. Sizes are in rows; a global batch is a multiple of world x micro-batch.

        Raises UserError for an unknown or empty split, DataError for a damaged block.
        """
        self.plan = plan_rows(manifest, split, sequence_length)
        if not self.plan.rows:
            raise UserError(f"split {split!r} of {manifest.directory} holds no documents; build it from more text")
        self._reader = ShardReader(manifest, split)
        self._special_ids = manifest.special_ids
        self._identity = manifest.identity
        self._seed = seed
        self._share = Share(rank, world_size, micro_batch_size, global_batch_size)
        self._cursor = cursor
        self._order: tuple[int, EpochOrder] | None = None  # of the epoch read last
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._free_slots = threading.Semaphore(_STEPS_AHEAD)
        self._ready: queue.SimpleQueue[Step | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._produce, name="train-stream", daemon=True)
        self._closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Step:
        """The next step. Raises what went wrong while it was prepared; after that, or once closed, StopIteration."""
        if self._closed:
            raise StopIteration
        if not self._thread.ident:
            self._thread.start()
        step = self._ready.get()
        if isinstance(step, BaseException):
            self.close()
            raise step
        self._free_slots.release()
        return step

    def close(self) -> None:
        """Stop the prefetch thread and wait for it: at most the time of one step."""
        self._closed = True
        self._free_slots.release()
        if self._thread.is_alive():
            self._thread.join()

    def state(self, cursor: Cursor) -> dict[str, str | int]:
        """What a checkpoint keeps in order to go on at `cursor`: the same on every rank, under 300 bytes as JSON."""
        return {
            "data_identity": self._identity,
            "order_version": ORDER_VERSION,
            "seed": self._seed,
            "epoch": cursor.epoch,
            "position": cursor.position,
            "rows": self.plan.rows,
            "sequence_length": self.plan.sequence_length,
        }

    def check_state(self, state: Mapping[str, object]) -> None:
        """Raise UserError where a run that goes on from `state` would repeat or miss rows, naming what differs."""
        mine = self.state(self._cursor)
        if state.get("data_identity") != self._identity:
            raise UserError(
                f"the data set changed: the checkpoint was trained on {state.get('data_identity')}, this one is "
                f"{self._identity}; point data.path at the old one or start a new run directory"
            )
        for name in ("order_version", "seed", "sequence_length", "rows"):
            if state.get(name) != mine[name]:
                raise UserError(
                    f"{name} of the data stream is {mine[name]} but {state.get(name)} in the checkpoint; "
                    "go on with the old value or start a new run directory"
                )

    def _produce(self) -> None:
        try:
            if self._device is not None:
                torch.cuda.set_device(self._device)  # a new thread begins on device 0, whatever the rank's device is
            cursor = self._cursor
            while self._free_slots.acquire() and not self._closed:
                batches, cursor = self._make_step(cursor)
                self._ready.put((batches, cursor))
        except BaseException as error:  # noqa: BLE001 - the consumer raises it, with this thread's traceback
            self._ready.put(error)

    def _make_step(self, cursor: Cursor) -> Step:
        if self._order is None or self._order[0] != cursor.epoch:
            rows_B = np.bincount(self.plan.row_block_R).astype(np.int64)
            self._order = cursor.epoch, epoch_order(rows_B, self._seed, cursor.epoch)
        row_ids_AM = self._order[1].rows_at(self._share.positions(cursor.position))
        batches = [
            make_batch(row_ids_M, self.plan, self._reader, self._special_ids, cursor.epoch) for row_ids_M in row_ids_AM
        ]
        return batches, advance(cursor, self.plan.rows, self._share.global_batch_size)


def validation_batches(
    manifest: Manifest,
    split: str,
    sequence_length: int,
    micro_batch_size: int,
    rank: int,
    world_size: int,
    max_rows: int,
) -> Iterator[Batch]:
    """This rank's share of the first `max_rows` rows of a split, in a fixed order and with one epoch for fixed masks.

    All ranks get the same number of batches, the last ones filled up with filler rows; together they have each row
    once at any world size. Raises UserError for an unknown split, DataError for a damaged block.
    """
    plan = plan_rows(manifest, split, sequence_length, max_rows)
    reader = ShardReader(manifest, split)
    rows = min(plan.rows, max_rows)
    round_size = world_size * micro_batch_size
    share = Share(rank, world_size, micro_batch_size, -(-rows // round_size) * round_size)
    row_ids_AM = share.positions(0)
    row_ids_AM[row_ids_AM >= rows] = FILLER_ROW
    for row_ids_M in row_ids_AM:
        yield make_batch(row_ids_M, plan, reader, manifest.special_ids, _VALIDATION_EPOCH)
