"""The loop of a run: load, step, validate, save.

Legend: H heads of the objective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch

from data_pipeline.durable import writing
from train.checkpoint import lowest_loss, save_checkpoint
from train.config import Config
from train.data.batch import Batch
from train.data.damage import damaged_blocks, is_too_much
from train.data.held_out import HeldOutRows
from train.data.order import Cursor
from train.data.stream import TrainStream
from train.distributed import Ranks, on_first_rank, together
from train.engine import Engine
from train.errors import BertmaeError, DataError, NonFiniteError, StoppedError
from train.export import EncoderForm, encoder_form, export_step, is_export_step
from train.monitor.incidents import Incidents
from train.monitor.learning import Learning
from train.monitor.logs import log
from train.monitor.metrics import newest_first
from train.monitor.profile import Window
from train.monitor.progress import duration
from train.monitor.recorder import Record, Recorder, StepSums
from train.objectives.rng import hash_integers
from train.optimizer import learning_rate
from train.ownership import refuse_another
from train.probes.in_run import RunProbes
from train.provenance import provenance
from train.rewind import GoBack, decide, last_applied
from train.sampling import Samples
from train.saving import Saves
from train.signals import SAVE_FILE, STOP_FILE, StopRequest, who_asked
from train.snapshot import Snapshot, own_group
from train.training_data import most_tokens_at
from train.validation import validate

_LOOK_FOR_STOP = 1.0  # seconds
_COUNTED = ("tokens", "flops", "rows", "damaged_rows")  # of the batches of a step


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
    incidents: Incidents
    probes: RunProbes
    samples: Samples
    learning: Learning
    saved_step: int = -1  # of the newest checkpoint, committed or under way
    saves: Saves = field(default_factory=Saves)
    snapshot: Snapshot = field(init=False)
    window: Window = field(init=False)
    _form: EncoderForm | None = None  # of what checkpoint.export_every writes
    _is_save_time: bool = False  # checkpoint.interval_minutes are over, as rank 0's clock says
    _notes: dict[str, float] = field(default_factory=dict)  # for the record of this step, beside its sums
    _ahead: Prepared | None = None
    _damaged_blocks: int = 0  # that this start met
    _save_asked: bool = False  # at the step just done, by any rank
    _is_validation_due: bool = False  # of the step just done: a request to stop has cut it short

    def __post_init__(self) -> None:
        self._is_validation_due = self.recorder.held is not None
        self.snapshot = Snapshot(self.ranks, own_group(self.ranks))
        self.window = Window(self.config.profile, Path(self.config.run.directory), self.ranks)

    def run_to_end(self, stop: StopRequest) -> None:
        """Train to the last step, or to the step at which the ranks agree to stop.

        Raises StoppedError, NonFiniteError after too many updates in a row that could not be applied, and GoBack where
        the run goes on from an earlier checkpoint. A checkpoint under way is finished first, however the run ends.
        """
        with closing(self.saves), closing(self.window):
            self._run(stop)

    def _run(self, stop: StopRequest) -> None:
        config, position = self.config, self.position
        began, first_step = time.perf_counter(), position.step
        self.recorder.begin(stop.started)
        self._damaged_blocks = damaged_blocks(self.ranks, self.stream.walk)  # those that no row could be planned of
        if self.ranks.rank == 0:
            stop.watch(Path(config.run.directory), config.run.max_minutes)
            if config.checkpoint.export_every:
                self._form = encoder_form(config, Path(config.run.directory) / "tokenizer")
        if first_step == 0:
            # Proves the disk before the first hour is spent; from here on a missing checkpoint is an error.
            self._save_whole()
        self.ranks.pulse.start.done("first checkpoint")
        self.saved_step = first_step
        self.ranks.pulse.loses_nothing = True
        self.recorder.go_on()
        if self._is_validation_due:
            self._validate_late(stop)
        elif first_step == 0:
            self._probe_start(stop)
        while not self._is_over():
            self.window.before(position.step + 1)
            if not self.step(stop):
                self._stop(stop)
            self.window.after(position.step)
            if sentence := self.ranks.pulse.start.end("first step"):
                log.info(sentence)
            last = self._is_over()
            if self._is_measured():
                self.validate(stop)
            if last or self._is_save_due():
                self.save()
            if self._save_asked:
                self._save_as_asked(stop)
            if self._notes or self._is_logged(position.step):
                self._flush()
        if self._is_validation_due:
            self._stop(stop)
        self._save_whole()
        self._finish(time.perf_counter() - began, position.step - first_step)

    def step(self, stop: StopRequest) -> bool:
        """One optimizer step; False, and nothing done, when any rank was asked to stop.

        Raises DataError where too many rows are damaged, UserError where a store is away for too long.
        """
        self.ranks.pulse.says("waits for data")
        waited = time.perf_counter()
        batches, cursor, failure = self._next_batches(stop)
        waited = time.perf_counter() - waited
        self.ranks.pulse.says("trains")
        prepared = self._ahead if self._ahead and self._ahead.read is batches else self._prepare(batches, 0)
        self._look_ahead()
        counts = [sum(getattr(batch, name) for batch in batches) for name in _COUNTED]
        requests = [int(stop.wants_save), int(stop.reason is not None)]
        own = [*self._targets(prepared), *counts, *self._save_news(), *requests, int(failure is not None)]
        *targets, tokens, flops, rows, damaged, ended, due, save, asked, failed = self.ranks.sum(own)
        self._is_save_time = due > 0
        if ended:
            self._hear_of_save()
        self._save_asked = save > 0
        if failed:
            self._end_together(failure)
        if asked:
            return False
        self._refuse_much_damage(rows, damaged)
        if damaged and not self.position.damaged_rows:
            words = "%d rows of the next batch are in damaged blocks, which log-rank*.txt name; damaged_rows counts on"
            self._tell("damaged rows", words % damaged)
        if damaged:
            self._damaged_blocks = damaged_blocks(self.ranks, self.stream.walk)
        rate = learning_rate(self.position.step, self.config)
        self.engine.set_learning_rate(rate)
        _seed_dropout(self.config.run.seed, self.position.step, self.ranks.rank)
        self.engine.measure_parts(self._is_logged(self.position.step + 1))
        losses_AH, hits_H2 = self._micro_steps(prepared, targets)
        self._advance(cursor, tokens, rows, damaged)
        self._remember(prepared, losses_AH)
        others = {
            "learning_rate": rate,
            "tokens_seen": self.position.tokens_seen,
            **self.stream.walk.progress(cursor),
            "skipped_updates": self.position.skipped_updates,
            "damaged_rows": self.position.damaged_rows,
            "damaged_blocks": self._damaged_blocks,
            "padding_share": round(1 - tokens / most_tokens_at(self.config, self.position.step - 1), 5),
        }
        if scale := self.engine.loss_scale:
            others["loss_scale"] = scale["cur_scale"]
        norm, parts = self.engine.gradient_norm, self.engine.gradient_parts
        losses_H = losses_AH.double().sum(0)
        step = self.position.step
        sums = StepSums(step, losses_H, hits_H2, tuple(targets), tokens, waited, norm, others, flops, parts)
        self.recorder.add(sums)
        self._refuse_to_skip_for_ever()
        return True

    def _stop(self, stop: StopRequest) -> NoReturn:
        """Say who asked, save, and raise StoppedError. Files that asked are gone then: the next start goes on."""
        codes_R = self.ranks.of_all(stop.code())
        why = who_asked(codes_R, self.config.run.max_minutes)
        log.info("step %d: asked to stop (%s)", self.position.step, why)
        if self.recorder.writers:
            self.recorder.writers.tell(self.position.step, "stop", f"asked to stop ({why})")
        self._save_whole()
        self._remove(stop, SAVE_FILE)
        self._remove(stop, STOP_FILE)
        self.recorder.say_goodput()
        raise StoppedError.agreed(f"stopped at step {self.position.step} ({why}); the same command goes on from there")

    def _save_as_asked(self, stop: StopRequest) -> None:
        self.save()
        self.recorder.pause()
        self._hear_of_save()
        self.recorder.go_on()
        self._remove(stop, SAVE_FILE)

    def _remove(self, stop: StopRequest, name: str) -> None:
        """Rank 0 alone looks for files that ask, and removes them when all ranks have done what they ask for."""
        file = Path(self.config.run.directory) / name
        together(self.ranks, lambda: stop.remove(file) if self.ranks.rank == 0 else None)

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
        self._save_whole()

        def end() -> None:
            if failure is not None:
                raise failure

        together(self.ranks, end)

    def _is_logged(self, step: int) -> bool:
        """Whether a log interval ends with this step."""
        return step % self.config.logging.interval_steps == 0

    def _is_measured(self) -> bool:
        """Whether a validation or the probes are due at the step just done."""
        return self._is_validated() or self.probes.are_due(self.position.step, last=self._is_over())

    def _is_validated(self) -> bool:
        every = self.config.validation.interval_steps
        return bool(self.held_out) and (self._is_over() or self.position.step % every == 0)

    def validate(self, stop: StopRequest) -> None:
        """Measure on held-out documents and by probes, where due; the record of this step carries the result.

        Where a request to stop cuts it short, the record is kept in the checkpoint, and the next start completes it.
        """
        self._is_validation_due = False
        if not self._is_measured():
            return
        self.recorder.pause("validation")
        self.ranks.pulse.says("validates")
        record = self._measured(stop)
        if record is None:
            log.info(
                "step %d: validation was cut short by a request to stop; the next start does it", self.position.step
            )
            self._is_validation_due = True
            self._flush()
            self.recorder.go_on()
            return
        self._notes |= record

    def _measured(self, stop: StopRequest) -> Record | None:
        """The measures that are due; None where any of them was cut short."""
        record: Record = {}
        if self._is_validated():
            found = validate(self.engine, self.held_out, self.ranks, stop)
            if found is None:
                return None
            record |= found | self.learning.frequencies(found)
            words = [f"{head} loss {found[f'validation_{head}_loss']:.4f}" for head in self.recorder.heads]
            log.info("step %d: held-out %s", self.position.step, ", ".join(words))
            for kind, sentence in self.learning.judge(self.position.step, found):
                self._tell(kind, sentence)
            self.samples.write(self.engine, self.position.step, stop)
        if self.probes.are_due(self.position.step, last=self._is_over()):
            found = self._probed(stop)
            if found is None:
                return None
            record |= found
        return record

    def _probe_start(self, stop: StopRequest) -> None:
        """Probes before the first step: a random encoder is a bag of words, and better at some than one may think."""
        file = Path(self.config.run.directory) / "metrics.jsonl"
        if not self.probes.are_there or not on_first_rank(self.ranks, lambda: next(newest_first(file), None) is None):
            return
        self.recorder.pause("validation")
        if found := self._probed(stop):
            self.recorder.write_start(found)
        self.recorder.go_on()

    def _probed(self, stop: StopRequest) -> Record | None:
        began = time.perf_counter()
        found = self.probes.measure(self.engine, stop)
        if found is None:
            return None
        words = [f"{name.removeprefix('probe_')} {value:.4f}" for name, value in found.items()]
        log.info("step %d: probes %s", self.position.step, ", ".join(words))
        return found | {"probe_seconds": round(time.perf_counter() - began, 3)}

    def _validate_late(self, stop: StopRequest) -> None:
        """What the start before was not given the time for; its checkpoint is written again, with the result."""
        self.validate(stop)
        if not self._is_validation_due:
            self.saved_step = -1
            self.save()

    def save(self) -> None:
        """Copy the state of this step to host memory, unless it is saved, and commit it beside the next steps."""
        if self.position.step == self.saved_step:
            return
        self._judge()  # a state whose own loss is a spike is not worth keeping
        self.recorder.pause()
        began = time.perf_counter()
        self._hear_of_save()
        self.ranks.pulse.says("copies the state for a checkpoint")
        self.snapshot.take(self.engine.pieces)
        state = self._state()
        self._notes["checkpoint_seconds"] = round(time.perf_counter() - began, 3)
        self._flush()
        self.saved_step = self.position.step
        self.saves.begin(self.ranks, self.saved_step, lambda: self._commit(state))

    def _save_whole(self) -> None:
        """Save, and wait until the checkpoint is whole. Raises CheckpointError on all ranks where it cannot be."""
        self.save()
        self.recorder.pause()
        self._hear_of_save(last=True)
        self.recorder.go_on()

    def _hear_of_save(self, *, last: bool = False) -> None:
        """All ranks hear how the commit under way ended, when it has. Raises CheckpointError where it failed.

        A full disk is an error after the `last` commit alone: the next interval tries again.
        """
        self.ranks.pulse.says("waits for the commit of a checkpoint")
        ended = self.saves.end(self.ranks, last=last)
        if ended is None:
            return
        step, path = ended
        if path is not None:
            log.info("step %d: checkpoint committed at %s", step, path)
            if self.recorder.writers:
                self.recorder.writers.progress.saved_step = step
            return
        self.saved_step = -1
        log.warning(
            "step %d: no checkpoint was written: the disk of %s is full; training goes on and tries again at the next "
            "interval: make room until then",
            step,
            self._folder,
        )

    def _save_news(self) -> tuple[int, int]:
        """What rank 0 alone knows: whether a commit has ended, whether checkpoint.interval_minutes are over."""
        minutes = self.config.checkpoint.interval_minutes
        over = self.ranks.rank == 0 and minutes is not None and self.saves.minutes_since_last() >= minutes
        return int(self.saves.has_ended), int(over)

    def _is_save_due(self) -> bool:
        config, step = self.config.checkpoint, self.position.step
        intervals = [every for every in (config.interval_steps, config.keep_every, config.export_every) if every]
        return self._is_save_time or any(step % interval == 0 for interval in intervals) or self._is_best()

    def _is_best(self) -> bool:
        """Whether the run keeps its best and this step's validation loss is below that of every checkpoint."""
        if not self.config.checkpoint.keep_best or "validation_loss" not in self._notes:
            return False
        self._hear_of_save()  # it may be the best
        loss, step = self._notes["validation_loss"], self.position.step
        return on_first_rank(self.ranks, lambda: loss < (lowest_loss(self._folder, step) or (math.inf, ""))[0])

    def _state(self) -> dict[str, Any]:
        """What a checkpoint of this step says beside its tensors."""
        data = self.stream.walk.state(self.position.cursor)
        state = {**self.position.counters(), "updates": self.engine.updates, "data": data}
        state |= {"loss_scale": self.engine.loss_scale, "loss_watch": self.incidents.rule.state()}
        if self._is_validation_due:
            state["unfinished"] = self.recorder.held
        return state | {name: loss for name, loss in self._notes.items() if name == "validation_loss"}

    def _commit(self, state: dict[str, Any]) -> str:
        """In the thread of `saves`, while the run is steps ahead: nothing here may look at the position."""
        self.ranks.pulse.is_helped_by_this_thread()
        tables = self.snapshot.collect()  # first, whatever fails: the other ranks wait for it
        if self.ranks.rank:
            return ""
        if self.recorder.writers:
            with writing(self._folder.with_name("metrics.jsonl")):
                self.recorder.writers.sync()
        refuse_another(self._folder.parent)
        keep = self.config.checkpoint
        state |= provenance(self.config)
        path = save_checkpoint(
            self._folder,
            state["step"],
            tables,
            state,
            keep.keep_last,
            keep_every=keep.keep_every,
            keep_best=keep.keep_best,
        )
        if self._form and is_export_step(self.config, state["step"]):
            export_step(self.config, self._form, state, tables["model"])
        return str(path)

    def _tell(self, kind: str, words: str) -> None:
        """A warning that the run's incidents keep."""
        log.warning("step %d: %s: %s", self.position.step, kind, words)
        if self.recorder.writers:
            self.recorder.writers.tell(self.position.step, kind, words)

    @property
    def _folder(self) -> Path:
        return Path(self.config.run.directory) / "checkpoints"

    def _remember(self, prepared: Prepared, losses_AH: torch.Tensor) -> None:
        """What an incident of the step just done will name."""
        self.incidents.remember(self.position.step, prepared.read, self.position.cursor)
        if not self.engine.applied:
            self.incidents.left_out(self.position.step, losses_AH, self.engine.loss_scale.get("cur_scale"))

    def _judge(self) -> None:
        """Judge the losses of the steps done. Raises GoBack where they are a spike and the run can and may go back."""
        spikes, settings = self.incidents.judge(self.recorder.read_back()), self.config.incidents
        if not spikes or not settings.rewind:
            return
        self._hear_of_save()
        self.ranks.pulse.says("looks for a checkpoint to go back to")
        run = Path(self.config.run.directory)
        step = on_first_rank(self.ranks, lambda: decide(run, spikes, settings.max_rewinds))
        if step is not None:
            self.recorder.flush()  # goodput counts them as lost
            log.warning("Going back to step %d, and past the rows of the spike.", step)
            raise GoBack

    def _flush(self) -> None:
        """Write the records of the steps, the last one with what came after it; then it is training time again."""
        self._judge()
        self.ranks.pulse.says("writes metrics")
        self.recorder.flush(self._notes, hold_last=self._is_validation_due)
        if self._notes:
            self.recorder.go_on()
        self._notes = {}

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
        """The sums of each accumulation step and over all of them, of this rank; they stay on the device."""
        scales = [weight / max(1, count) for weight, count in zip(self.recorder.weights, targets, strict=True)]
        scale_H = torch.tensor(scales)
        if self.ranks.device.type == "cuda":  # from pageable memory the copy would wait for the device
            scale_H = scale_H.pin_memory().to(self.ranks.device, non_blocking=True)
        last = len(prepared.batches) - 1
        pairs = enumerate(zip(prepared.batches, prepared.selections, strict=True))
        sums = [self.engine.micro_step(batch, selected, scale_H, last=i == last) for i, (batch, selected) in pairs]
        losses_AH = torch.stack([losses_H for losses_H, _ in sums])
        return losses_AH, torch.stack([hits_H2 for _, hits_H2 in sums]).sum(0)

    def _advance(self, cursor: Cursor, tokens: int, rows: int, damaged_rows: int) -> None:
        position = self.position
        position.step += 1
        self.ranks.pulse.step, self.ranks.pulse.loses_nothing = position.step, False
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
            self._save_whole()
            together(self.ranks, lambda: self._name_damage(f"{lost:,} of {seen:,} rows"))

    def _name_damage(self, rows: str) -> None:
        """Raise the DataError on a rank that met damage; the other ranks hear of it."""
        if damage := [*self.stream.walk.damage.values()]:
            share, logs = self.config.data.max_damaged_share, f"{self.config.run.directory}/log-rank*.txt"
            raise DataError(
                f"{rows} are in damaged blocks, above data.max_damaged_share {share} ({logs} name all), the first: "
                f"{damage[0]}; then the same command goes on"
            )

    def _is_over(self) -> bool:
        """Whether the last step is done, or the data are at their end: the same on every rank."""
        position = self.position
        return position.step >= self.config.run.steps or self.stream.is_over(position.cursor, position.step)

    def _refuse_to_skip_for_ever(self) -> None:
        skipped, run = self.position.skipped_in_a_row, self.config.run.directory
        if skipped > self.config.incidents.max_skipped_in_a_row:
            self.recorder.flush()
            self._hear_of_save()
            good = on_first_rank(self.ranks, lambda: last_applied(self._folder))
            raise NonFiniteError.agreed(
                f"step {self.position.step}: {skipped} updates in a row had gradients that are not finite; {good}; "
                f"give the same command with a lower optimizer.learning_rate ({run}/incidents.jsonl names the rows)"
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
        self.recorder.say_goodput()
        if self.recorder.writers:
            self.recorder.writers.close()


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout is a function of (seed, step, rank): no generator state has to be saved or moved between ranks."""
    torch.manual_seed(hash_integers(seed, step, rank))
