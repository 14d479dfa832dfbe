"""A pretraining run from its configuration to its last checkpoint.

Legend: H heads of the objective.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.manifest import Manifest, load_manifest
from train import checkpoint, distributed, run_directory
from train.config import Config, dump_config
from train.data.batch import Batch
from train.data.order import Cursor
from train.data.packing import plan_rows
from train.data.stream import TrainStream
from train.derived import describe
from train.distributed import Ranks, on_first_rank, together
from train.ds_config import load_ds_config
from train.errors import BertmaeError, NonFiniteError, StoppedError
from train.monitor.logs import add_rank_file, log
from train.monitor.metrics import last_step
from train.monitor.progress import duration
from train.monitor.recorder import Record, Recorder, StepSums, Writers
from train.objectives import build_objective
from train.objectives.rng import hash_integers
from train.optimizer import learning_rate
from train.signals import StopRequest
from train.vocabulary import Vocabulary, load_vocabulary

_MAX_SKIPPED_IN_A_ROW = 20


@dataclass(slots=True)
class Progress:
    """Where a run is. All of it is in every checkpoint, equal on all ranks."""

    step: int = 0
    tokens_seen: int = 0
    cursor: Cursor = Cursor(epoch=0, position=0)  # noqa: RUF009 - frozen
    skipped_updates: int = 0
    skipped_in_a_row: int = 0


def dry_run(config: Config) -> Iterator[str]:
    """The resolved configuration and what would happen, without training. Raises what the run would raise."""
    _, world_size, _ = distributed.environment()
    manifest = load_manifest(Path(config.data.path))
    plan = plan_rows(manifest, "train", config.data.sequence_length)
    yield dump_config(config)
    yield from describe(config, world_size, plan, load_vocabulary(manifest))
    yield "Dry run: nothing was trained."


def pretrain(config: Config, stop: StopRequest) -> None:
    """Train until `run.steps` are done, from the newest checkpoint of the run folder where there is one.

    Raises StoppedError after a request to stop, with a committed checkpoint.
    """
    ranks = distributed.start()
    run = Path(config.run.directory)
    with together(ranks, lambda: run_directory.lock(run) if ranks.rank == 0 else nullcontext()):
        _pretrain(config, ranks, run, stop)


def _pretrain(config: Config, ranks: Ranks, run: Path, stop: StopRequest) -> None:
    add_rank_file(run, ranks.rank)
    manifest = together(ranks, lambda: load_manifest(Path(config.data.path)))
    vocabulary = together(ranks, lambda: load_vocabulary(manifest))
    ds_config = together(ranks, lambda: load_ds_config(config, ranks.world_size))
    resume = _resume(config, ranks, run, ds_config, manifest)
    if resume is not None and resume.step >= config.run.steps:
        log.info("Nothing to do: %s has all its %d steps (%s).", run, config.run.steps, resume.path)
        return
    stream = together(ranks, lambda: _stream(config, ranks, manifest, resume))
    try:
        for sentence in describe(config, ranks.world_size, stream.plan, vocabulary):
            log.info(sentence)
        Training(config, ranks, run, manifest, vocabulary, ds_config, stream, resume).run_to_end(stop)
    finally:
        stream.close()


def _resume(
    config: Config, ranks: Ranks, run: Path, ds_config: dict[str, Any], manifest: Manifest
) -> checkpoint.Checkpoint | None:
    """Rank 0 decides where the run goes on; every rank hears the same."""

    def decide() -> dict[str, Any]:
        changes = run_directory.settle(run, config, ds_config, manifest.tokenizer_folder)
        found, problems = checkpoint.resume_point(run / "checkpoints", last_step(run / "metrics.jsonl"))
        chosen = None if found is None else {"path": str(found.path), "state": found.state}
        return {"chosen": chosen, "sentences": changes + [f"Not used: {problem}." for problem in problems]}

    decision = on_first_rank(ranks, decide)
    for sentence in decision["sentences"]:
        log.warning(sentence)
    chosen = decision["chosen"]
    return checkpoint.Checkpoint(Path(chosen["path"]), chosen["state"]) if chosen else None


def _stream(config: Config, ranks: Ranks, manifest: Manifest, resume: checkpoint.Checkpoint | None) -> TrainStream:
    state = resume.state["data"] if resume else {"epoch": 0, "position": 0}
    stream = TrainStream(
        manifest,
        "train",
        config.data.sequence_length,
        config.run.seed,
        config.batch.micro_batch_size,
        config.batch.global_batch_size,
        ranks.rank,
        ranks.world_size,
        Cursor(state["epoch"], state["position"]),
    )
    if resume:
        stream.check_state(state)
    return stream


class Training:
    """The loop and what it needs at hand."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        run: Path,
        manifest: Manifest,
        vocabulary: Vocabulary,
        ds_config: dict[str, Any],
        stream: TrainStream,
        resume: checkpoint.Checkpoint | None,
    ) -> None:
        from train.engine import Engine  # DeepSpeed takes seconds to import; a mistyped path should not wait for it

        self.config, self.ranks, self.run, self.manifest, self.stream = config, ranks, run, manifest, stream
        torch.manual_seed(config.run.seed)
        module = build_objective(config, vocabulary)
        if resume:
            together(ranks, lambda: checkpoint.load_weights(module, resume.path))
        self.engine = Engine(module, config, ds_config, ranks)
        self.heads, self.weights = module.heads, module.weights()
        self.progress = self._restore(resume) if resume else Progress()
        writers = together(ranks, self._open_writers)
        self.recorder = Recorder(ranks, self.heads, self.weights, writers)
        self.saved_step = resume.step if resume else -1

    def run_to_end(self, stop: StopRequest) -> None:
        """Load, step, validate, save; the last step always does all of it."""
        began, first_step = time.perf_counter(), self.progress.step
        config, progress = self.config, self.progress
        if progress.step == 0:
            self.save()  # proves the disk before the first hour is spent; from here on a missing checkpoint is an error
        self.recorder.go_on()
        while progress.step < config.run.steps:
            if not self.step(stop):
                self.save()
                raise _everywhere(StoppedError(f"stopped at step {progress.step}; the same command goes on from there"))
            last = progress.step == config.run.steps
            if last or progress.step % config.validation.interval_steps == 0:
                self.validate()
            if last or progress.step % config.checkpoint.interval_steps == 0:
                self.save()
            if progress.step % config.logging.interval_steps == 0:
                self.recorder.flush()
        self._finish(time.perf_counter() - began, progress.step - first_step)

    def step(self, stop: StopRequest) -> bool:
        """One optimizer step; False, and nothing done, when any rank was asked to stop."""
        waited = time.perf_counter()
        batches, cursor = next(self.stream)
        waited = time.perf_counter() - waited
        *targets, tokens, asked = self.ranks.sum([*self._targets(batches), *_tokens(batches), int(bool(stop.reason))])
        if asked:
            return False
        rate = learning_rate(self.progress.step, self.config)
        self.engine.set_learning_rate(rate)
        _seed_dropout(self.config.run.seed, self.progress.step, self.ranks.rank)
        losses_H, hits_H2 = self._micro_steps(batches, targets)
        self._advance(cursor, tokens)
        others = {
            "learning_rate": rate,
            "tokens_seen": self.progress.tokens_seen,
            "epoch": cursor.epoch + cursor.position / self.stream.plan.rows,
            "skipped_updates": self.progress.skipped_updates,
        }
        norm = self.engine.gradient_norm
        self.recorder.add(StepSums(self.progress.step, losses_H, hits_H2, tuple(targets), tokens, waited, norm, others))
        return True

    def validate(self) -> Record:
        """Measure on held-out documents; the record of this step carries the result."""
        from train.validation import has_validation, validate

        if not has_validation(self.manifest):
            return {}
        self.recorder.pause()
        record = validate(self.engine, self.config, self.manifest, self.ranks)
        self.recorder.flush(record)
        words = [f"{head} loss {record[f'validation_{head}_loss']:.4f}" for head in self.heads]
        log.info("step %d: held-out %s", self.progress.step, ", ".join(words))
        self.recorder.go_on()
        return record

    def save(self) -> None:
        """Commit a checkpoint of this step, unless there is one."""
        progress = self.progress
        if progress.step == self.saved_step:
            return
        self.recorder.pause()
        self.recorder.flush()
        tables = self.engine.state()
        state = {
            "tokens_seen": progress.tokens_seen,
            "updates": self.engine.updates,
            "skipped_updates": progress.skipped_updates,
            "skipped_in_a_row": progress.skipped_in_a_row,
            "data": self.stream.state(progress.cursor),
        }
        path = on_first_rank(self.ranks, lambda: self._commit(tables, state))
        self.saved_step = progress.step
        log.info("step %d: checkpoint committed at %s", progress.step, path)
        self.recorder.go_on()

    def _commit(self, tables: dict[str, dict[str, torch.Tensor]], state: dict[str, Any]) -> str:
        if self.recorder.writers:
            self.recorder.writers.sync()
        folder = self.run / "checkpoints"
        return str(
            checkpoint.save_checkpoint(folder, self.progress.step, tables, state, self.config.checkpoint.keep_last)
        )

    def _restore(self, resume: checkpoint.Checkpoint) -> Progress:
        tables = together(
            self.ranks,
            lambda: {table: checkpoint.read_table(resume.path, table) for table in ("model", "exp_avg", "exp_avg_sq")},
        )
        state = resume.state
        self.engine.load_state(tables, state["updates"])
        log.info("Going on from %s (step %d, %s tokens seen).", resume.path, resume.step, f"{state['tokens_seen']:,}")
        return Progress(
            step=resume.step,
            tokens_seen=state["tokens_seen"],
            cursor=Cursor(state["data"]["epoch"], state["data"]["position"]),
            skipped_updates=state["skipped_updates"],
            skipped_in_a_row=state["skipped_in_a_row"],
        )

    def _open_writers(self) -> Writers | None:
        if self.ranks.rank:
            return None
        writers = Writers.open(self.run, self.config.run.steps, self.progress.step)
        writers.curves.text("config", f"```yaml\n{dump_config(self.config)}\n```")
        return writers

    def _targets(self, batches: list[Batch]) -> list[int]:
        counts_H = sum(self.engine.module.target_counts(batch.lengths_D) for batch in batches)
        return [int(count) for count in np.asarray(counts_H)]

    def _micro_steps(self, batches: list[Batch], targets: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The sums of this rank over the accumulation steps, which stay on the device."""
        device = self.ranks.device
        scales = [weight / max(1, count) for weight, count in zip(self.weights, targets, strict=True)]
        scale_H = torch.tensor(scales).to(device, non_blocking=True)
        sums = [self.engine.micro_step(batch.to(device), scale_H) for batch in batches]
        return torch.stack([losses_H for losses_H, _ in sums]).double().sum(0), torch.stack([h for _, h in sums]).sum(0)

    def _advance(self, cursor: Cursor, tokens: int) -> None:
        progress = self.progress
        progress.step += 1
        progress.tokens_seen += tokens
        progress.cursor = cursor
        progress.skipped_in_a_row = 0 if self.engine.applied else progress.skipped_in_a_row + 1
        progress.skipped_updates += int(not self.engine.applied)
        if not self.engine.applied:
            log.warning("step %d: gradients are not finite on some rank; nothing was applied", progress.step)
        if progress.skipped_in_a_row >= _MAX_SKIPPED_IN_A_ROW:
            raise _everywhere(
                NonFiniteError(
                    f"{_MAX_SKIPPED_IN_A_ROW} updates in a row had gradients that are not finite; the last good "
                    f"checkpoint is that of step {self.saved_step}; lower optimizer.learning_rate"
                )
            )

    def _finish(self, seconds: float, steps: int) -> None:
        last = self.recorder.last
        log.info(
            "Done: %d steps in %s, %s tokens seen in all, loss %.4f. Curves: tensorboard --logdir %s",
            steps,
            duration(seconds),
            f"{self.progress.tokens_seen:,}",
            last["loss"],
            self.run / "tensorboard",
        )
        if self.recorder.writers:
            self.recorder.writers.close()


def _tokens(batches: list[Batch]) -> list[int]:
    return [sum(batch.tokens for batch in batches)]


def _seed_dropout(seed: int, step: int, rank: int) -> None:
    """Dropout is a function of (seed, step, rank): no generator state has to be saved or moved between ranks."""
    torch.manual_seed(hash_integers(seed, step, rank))


def _everywhere(error: BertmaeError) -> BertmaeError:
    """An error that all ranks have agreed on: the first one prints it."""
    error.everywhere = True
    return error
