"""The loop of a run: load, step, validate, save.

Legend: H heads of the objective.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.checkpoint import save_checkpoint
from train.config import Config
from train.data.batch import Batch
from train.data.damage import is_too_much
from train.data.held_out import HeldOutRows
from train.data.order import Cursor
from train.data.stream import TrainStream
from train.distributed import Ranks, on_first_rank, together
from train.engine import Engine
from train.errors import BertmaeError, DataError, NonFiniteError, StoppedError
from train.monitor.logs import log
from train.monitor.progress import duration
from train.monitor.recorder import Recorder, StepSums
from train.objectives.rng import hash_integers
from train.optimizer import learning_rate
from train.signals import StopRequest
from train.validation import validate

_MAX_SKIPPED_IN_A_ROW = 20
_LOOK_FOR_STOP = 1.0  # seconds


@dataclass(slots=True)
class Position:
    """Where a run is. All of it is in every checkpoint, equal on all ranks."""

    step: int = 0
    tokens_seen: int = 0
    skipped_updates: int = 0
    skipped_in_a_row: int = 0
    rows_seen: int = 0
    damaged_rows: int = 0  # of the rows seen: those that could not be read
    cursor: Cursor = Cursor(epoch=0, position=0)  # noqa: RUF009 - frozen

    @classmethod
    def of(cls, state: Mapping[str, Any], cursor: Cursor) -> Position:
        """The position that a checkpoint's state.json speaks of, with the cursor of its data."""
        names = ("step", "tokens_seen", "skipped_updates", "skipped_in_a_row", "rows_seen", "damaged_rows")
        return cls(**{name: int(state[name]) for name in names}, cursor=cursor)

    def counters(self) -> dict[str, int]:
        return {name: value for name, value in asdict(self).items() if name != "cursor"}


@dataclass(frozen=True, slots=True)
class Prepared:
    """The micro-batches of a step on the device, and what is masked in each."""

    read: list[Batch]  # as the stream gave them
    batches: list[Batch]
    selections: list[Any]


@dataclass(slots=True)
class Training:
    """The loop and what it needs at hand."""

    config: Config
    ranks: Ranks
    held_out: list[HeldOutRows]  # of each data set that has some
    engine: Engine
    stream: TrainStream
    recorder: Recorder
    position: Position
    saved_step: int = -1
    _ahead: Prepared | None = None

    def run_to_end(self, stop: StopRequest) -> None:
        """Train to the last step, or to the step at which the ranks agree to stop.

        Raises StoppedError, and NonFiniteError after too many updates in a row that could not be applied.
        """
        config, position = self.config, self.position
        began, first_step = time.perf_counter(), position.step
        if first_step == 0:
            self.save()  # proves the disk before the first hour is spent; from here on a missing checkpoint is an error
        self.saved_step = first_step
        self.recorder.go_on()
        while not self._is_over():
            if not self.step(stop):
                self.save()
                raise StoppedError.agreed(f"stopped at step {position.step}; the same command goes on from there")
            last = self._is_over()
            if last or position.step % config.validation.interval_steps == 0:
                self.validate()
            if last or position.step % config.checkpoint.interval_steps == 0:
                self.save()
            if position.step % config.logging.interval_steps == 0:
                self.recorder.flush()
        self._finish(time.perf_counter() - began, position.step - first_step)

    def step(self, stop: StopRequest) -> bool:
        """One optimizer step; False, and nothing done, when any rank was asked to stop.

        Raises DataError where too many rows are damaged, UserError where a store is away for too long.
        """
        waited = time.perf_counter()
        batches, cursor, failure = self._next_batches(stop)
        waited = time.perf_counter() - waited
        prepared = self._ahead if self._ahead and self._ahead.read is batches else self._prepare(batches, 0)
        self._look_ahead()
        counts = [sum(getattr(batch, name) for batch in batches) for name in ("tokens", "rows", "damaged_rows")]
        own = [*self._targets(prepared), *counts, int(stop.reason is not None), int(failure is not None)]
        *targets, tokens, rows, damaged, asked, failed = self.ranks.sum(own)
        if failed:
            self._end_together(failure)
        if asked:
            return False
        self._refuse_much_damage(rows, damaged)
        rate = learning_rate(self.position.step, self.config)
        self.engine.set_learning_rate(rate)
        _seed_dropout(self.config.run.seed, self.position.step, self.ranks.rank)
        losses_H, hits_H2 = self._micro_steps(prepared, targets)
        self._advance(cursor, tokens, rows, damaged)
        others = {
            "learning_rate": rate,
            "tokens_seen": self.position.tokens_seen,
            **self.stream.walk.progress(cursor),
            "skipped_updates": self.position.skipped_updates,
            "damaged_rows": self.position.damaged_rows,
        }
        if scale := self.engine.loss_scale:
            others["loss_scale"] = scale["cur_scale"]
        norm = self.engine.gradient_norm
        self.recorder.add(StepSums(self.position.step, losses_H, hits_H2, tuple(targets), tokens, waited, norm, others))
        self._refuse_to_skip_for_ever()
        return True

    def _next_batches(self, stop: StopRequest) -> tuple[list[Batch], Cursor, BertmaeError | None]:
        """The next batches and the cursor after them; or none, and why there are none.

        A store may be away for minutes: who asks the run to stop does not wait for it.
        """
        try:
            while not self.stream.is_ready(_LOOK_FOR_STOP):
                if stop.reason is not None:
                    return [], self.position.cursor, None
            return *next(self.stream), None
        except BertmaeError as error:
            return [], self.position.cursor, error

    def _end_together(self, failure: BertmaeError | None) -> None:
        """Save, then raise on all ranks what some rank met."""
        self.save()

        def end() -> None:
            if failure is not None:
                raise failure

        together(self.ranks, end)

    def validate(self) -> None:
        """Measure on held-out documents; the record of this step carries the result."""
        if not self.held_out:
            return
        self.recorder.pause()
        record = validate(self.engine, self.held_out, self.ranks)
        self.recorder.flush(record)
        words = [f"{head} loss {record[f'validation_{head}_loss']:.4f}" for head in self.recorder.heads]
        log.info("step %d: held-out %s", self.position.step, ", ".join(words))
        self.recorder.go_on()

    def save(self) -> None:
        """Commit a checkpoint of this step, unless there is one."""
        if self.position.step == self.saved_step:
            return
        self.recorder.pause()
        self.recorder.flush()
        tables = self.engine.state()
        data = self.stream.walk.state(self.position.cursor)
        state = {**self.position.counters(), "updates": self.engine.updates, "data": data}
        state["loss_scale"] = self.engine.loss_scale
        path = on_first_rank(self.ranks, lambda: self._commit(tables, state))
        self.saved_step = self.position.step
        log.info("step %d: checkpoint committed at %s", self.position.step, path)
        self.recorder.go_on()

    def _commit(self, tables: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> str:
        if self.recorder.writers:
            self.recorder.writers.sync()
        folder = Path(self.config.run.directory) / "checkpoints"
        return str(save_checkpoint(folder, self.position.step, tables, state, self.config.checkpoint.keep_last))

    def _prepare(self, batches: list[Batch], later: int) -> Prepared:
        """Move the batches of this step, or of one so many steps later, and draw what is masked in them."""
        moved = [batch.to(self.ranks.device) for batch in batches]
        step = self.position.step + later
        return Prepared(batches, moved, [self.engine.module.select(batch, step) for batch in moved])

    def _look_ahead(self) -> None:
        """Prepare the next step before this one is queued on the device: its counts of targets then come to the host
        while the device works, and no step waits for them."""
        batches = self.stream.peek()
        self._ahead = None if batches is None else self._prepare(batches, 1)

    def _targets(self, prepared: Prepared) -> list[int]:
        counts_H = np.zeros(len(self.recorder.heads), dtype=np.int64)
        for selection in prepared.selections:
            counts_H += self.engine.module.target_counts(selection)
        return [int(count) for count in counts_H]

    def _micro_steps(self, prepared: Prepared, targets: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of this rank over the accumulation steps, which stay on the device."""
        scales = [weight / max(1, count) for weight, count in zip(self.recorder.weights, targets, strict=True)]
        scale_H = torch.tensor(scales)
        if self.ranks.device.type == "cuda":  # from pageable memory the copy would wait for the device
            scale_H = scale_H.pin_memory().to(self.ranks.device, non_blocking=True)
        pairs = zip(prepared.batches, prepared.selections, strict=True)
        sums = [self.engine.micro_step(batch, selection, scale_H) for batch, selection in pairs]
        losses_AH = torch.stack([losses_H for losses_H, _ in sums])
        return losses_AH.double().sum(0), torch.stack([hits_H2 for _, hits_H2 in sums]).sum(0)

    def _advance(self, cursor: Cursor, tokens: int, rows: int, damaged_rows: int) -> None:
        position = self.position
        position.step += 1
        position.tokens_seen += tokens
        position.rows_seen += rows
        position.damaged_rows += damaged_rows
        position.cursor = cursor
        if self.engine.applied:
            position.skipped_in_a_row = 0
            return
        position.skipped_in_a_row += 1
        position.skipped_updates += 1
        log.warning("step %d: gradients are not finite on some rank; nothing was applied", position.step)

    def _refuse_much_damage(self, rows: int, damaged: int) -> None:
        """Before the step is done: a run that goes on after a repair loses none of its rows."""
        seen, lost = self.position.rows_seen + rows, self.position.damaged_rows + damaged
        if damaged and is_too_much(lost, seen, self.config.data.max_damaged_share):
            self.save()
            together(self.ranks, lambda: self._name_damage(f"{lost:,} of {seen:,} rows"))

    def _name_damage(self, rows: str) -> None:
        """Raise the DataError on a rank that met damage; the other ranks hear of it."""
        if self.stream.walk.damage:
            share, logs = self.config.data.max_damaged_share, f"{self.config.run.directory}/log-rank*.txt"
            raise DataError(
                f"{rows} are in damaged blocks, above data.max_damaged_share {share} ({logs} name all), the first: "
                f"{self.stream.walk.damage[0]}; then the same command goes on"
            )

    def _is_over(self) -> bool:
        """Whether the last step is done, or the data are at their end: the same on every rank."""
        position = self.position
        return position.step >= self.config.run.steps or self.stream.is_over(position.cursor, position.step)

    def _refuse_to_skip_for_ever(self) -> None:
        if self.position.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            self.recorder.flush()
            raise NonFiniteError.agreed(
                f"{_MAX_SKIPPED_IN_A_ROW} updates in a row had gradients that are not finite; go on from an earlier "
                f"step of {self.config.run.directory}/checkpoints with a lower optimizer.learning_rate"
            )

    def _finish(self, seconds: float, steps: int) -> None:
        if self.position.step < self.config.run.steps:
            log.info("The data are at their end, and data.when_exhausted is stop.")
        log.info(
            "Done: %d steps in %s, %s tokens seen in all, loss %.4f. Curves: tensorboard --logdir %s/tensorboard",
            steps,
            duration(seconds),
            f"{self.position.tokens_seen:,}",
            self.recorder.last.get("loss", float("nan")),
            self.config.run.directory,
        )
        if self.recorder.writers:
            self.recorder.writers.close()


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout is a function of (seed, step, rank): no generator state has to be saved or moved between ranks."""
    torch.manual_seed(hash_integers(seed, step, rank))
