"""`pretrain --find-micro-batch`: real steps of several sizes with an engine that is thrown away, before the run begins.

Legend: H heads of the objective.
"""

from __future__ import annotations

import gc
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from train.config import Config, global_batch_size, mask_ratio
from train.data.batch import Batch
from train.distributed import Ranks, together
from train.ds_config import load_ds_config
from train.engine import Engine
from train.errors import UserError
from train.estimate import host_memory
from train.estimate.activations import full_rows
from train.estimate.micro_batch_search import Room, Trial, candidates, choose, next_size, predict
from train.monitor.logs import log
from train.objectives import build_objective
from train.training_data import most_tokens_at
from train.vocabulary import Vocabulary

_SHARE = 0.9  # of the memory: the rest is for fragments, and for what a run has beside its steps
_REPEATS = 2  # of a trial, after a first step that is not measured
_INNER = 3  # passes without an update that are measured together, at most
_STATE = 12  # bytes of a parameter in a checkpoint, which rank 0 has twice in host memory while it is written
_GB = 1e9


def find_micro_batch(config: Config, ranks: Ranks, vocabulary: Vocabulary, before_each: Callable[[], None]) -> Config:
    """The configuration with the fastest micro-batch that fits, the same on all ranks; nothing else is changed.

    `before_each` trial it may raise, on all ranks. Raises UserError where no size divides the global batch or fits.
    """
    sizes = candidates(config, ranks.world_size)
    if not sizes:
        raise UserError.agreed(
            f"--find-micro-batch: batch.global_batch_size {config.batch.global_batch_size} does not divide over "
            f"{ranks.world_size} devices: use a multiple of their number"
        )
    ranks.pulse.says("builds a model for trials of micro-batches")
    trials_of = _Trials(config, ranks, vocabulary, sizes[0])
    trials: list[Trial] = []
    while (rows := next_size(sizes, trials, trials_of.room)) is not None:
        before_each()
        trials.append(trials_of.measure(rows))
    trials_of.close()
    best = choose(trials, trials_of.room)
    for line in report(config, sizes, trials, trials_of.room):
        log.info(line)
    ranks.pulse.start.done("trials of micro-batches")
    if best is None:
        raise UserError.agreed(
            f"--find-micro-batch: not even a micro-batch of {sizes[0]} rows fits: set model.gradient_checkpointing or "
            "another engine.ds_config, or use more devices"
        )
    return with_rows(config, best.rows)


def with_rows(config: Config, rows: int) -> Config:
    """The configuration with micro-batches of so many rows. The accumulation steps follow."""
    return config.model_copy(update={"batch": config.batch.model_copy(update={"micro_batch_size": rows})})


def report(config: Config, sizes: Sequence[int], trials: Sequence[Trial], room: Room) -> Iterator[str]:
    """A table of what was tried, and a sentence on what is taken."""
    tokens = most_tokens_at(config, 0)
    yield f"Micro-batches tried, with full rows of {_worst(config, 1)[1]:,} tokens:"
    yield f"{'rows':>8} {'tokens/s':>12} {'peak GB':>10} {'of GB':>8}"
    for trial in sorted(trials, key=lambda trial: trial.rows):
        peak, most = max(zip(trial.peaks_R, room.limits_R, strict=True), key=lambda pair: pair[0] / pair[1])
        speed, peak_gb = f"{tokens / trial.seconds:,.0f}", f"{peak / _GB:.2f}"
        if math.isinf(peak):
            speed, peak_gb = "-", "too much"
        yield f"{trial.rows:>8} {speed:>12} {peak_gb:>10} {most / _GB:>8.2f}"
    larger = next((size for size in sizes if trials and size > max(trial.rows for trial in trials)), None)
    if larger is not None and not room.holds(expected_R := predict(trials, room, larger)):
        yield f"{larger} rows would take about {max(expected_R) / _GB:.2f} GB: not tried."
    best, before = choose(trials, room), config.batch.micro_batch_size
    if best is None:
        return
    if best.rows == before:
        yield f"batch.micro_batch_size {before} is the fastest that fits, and the configured one."
        return
    yield f"batch.micro_batch_size is {best.rows} from here on, the fastest that fits; the configuration says {before}."


def _worst(config: Config, rows: int) -> tuple[int, int]:
    """(rows, tokens of each) of the micro-batch of the run that takes most, where so many rows are configured."""
    length = max([config.data.sequence_length, *(change.length for change in config.data.sequence_length_at)])
    shrink = length // config.data.sequence_length if config.batch.same_tokens_per_step else 1
    return max(1, rows // shrink), length


class _Trials:
    """The engine of the trials; one rank alone gets a new one where memory ran out."""

    def __init__(self, config: Config, ranks: Ranks, vocabulary: Vocabulary, smallest: int) -> None:
        self._config = with_rows(config, smallest)  # as many accumulation steps as there can be: what takes most
        self._ranks = ranks
        self._vocabulary = vocabulary
        changes = [0, *(change.step for change in config.objective.mask_ratio_at)]
        self._step = max(changes, key=lambda step: mask_ratio(config.objective, step))  # with the most targets
        self._engine = self._build()
        before, most = together(ranks, self._memory)
        gathered = [json.loads(text) for text in ranks.gather(json.dumps([before, most]))]
        self.room = Room(tuple(own[0] for own in gathered), tuple(own[1] for own in gathered))

    def measure(self, rows: int) -> Trial:
        """Some optimizer steps. Where memory runs out on one of several ranks, the others are left in a collective:
        that ends the run, before it has begun."""
        self._ranks.pulse.says(f"tries micro-batches of {rows} rows")
        try:
            seconds, peak = self._timed(rows), self._peak()
        except torch.cuda.OutOfMemoryError as error:
            if self._ranks.world_size > 1:
                raise UserError(
                    f"--find-micro-batch: rank {self._ranks.rank} ran out of memory with {rows} rows, though less than "
                    "that was expected: leave it out, and set batch.micro_batch_size"
                ) from error
            seconds, peak = math.inf, math.inf
        if math.isinf(peak):
            self.close()
            self._engine = self._build()
        found = [json.loads(text) for text in self._ranks.gather(json.dumps([seconds, peak]))]
        return Trial(rows, max(own[0] for own in found), tuple(own[1] for own in found))

    def close(self) -> None:
        """Give all memory back."""
        self._engine.dispose()
        del self._engine
        gc.collect()  # it has cycles
        torch.cuda.empty_cache()

    def _build(self) -> Engine:
        torch.manual_seed(self._config.run.seed)
        module = build_objective(self._config, self._vocabulary)
        return Engine(module, self._config, load_ds_config(self._config, self._ranks.world_size), self._ranks)

    def _timed(self, rows: int) -> float:
        """Seconds of an optimizer step over the global batch, computed from those of its parts."""
        accumulation = global_batch_size(self._config.batch, 0) // (rows * self._ranks.world_size)
        inner = min(_INNER, accumulation - 1)
        self._forget_peak()
        batch = full_rows(*_worst(self._config, rows), self._vocabulary.size, seed=rows).to(self._ranks.device)
        self._pass(batch, last=True)
        found = []
        for _ in range(_REPEATS):
            began = self._now()
            for _ in range(inner):
                self._pass(batch, last=False)
            between = self._now()
            self._pass(batch, last=True)
            each = (between - began) / max(1, inner)
            found.append((accumulation - 1) * each + self._now() - between)
        return min(found)

    def _pass(self, batch: Batch, *, last: bool) -> None:
        module = self._engine.module
        selection = module.select(batch, self._step)
        scale_H = torch.full((len(module.heads),), 1 / batch.tokens, device=self._ranks.device)
        self._engine.micro_step(batch, selection, scale_H, last=last)

    def _now(self) -> float:
        if self._ranks.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def _forget_peak(self) -> None:
        if self._ranks.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            return
        host_memory.forget_peak()

    def _peak(self) -> float:
        """Bytes of the trial at its peak: of a GPU all that is not free, whoever has it."""
        if self._ranks.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total - free - torch.cuda.memory_reserved() + torch.cuda.max_memory_reserved()
        return host_memory.peak()

    def _memory(self) -> tuple[float, float]:
        """Bytes taken now, and the limit. Ranks of one host share its memory."""
        if self._ranks.device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            return total - free, _SHARE * total
        host_memory.forget_peak()
        parameters = sum(getattr(p, "ds_numel", p.numel()) for p in self._engine.module.parameters())
        kept = 2 * _STATE * parameters if self._ranks.local_rank == 0 else 0
        hosts_R = self._ranks.hosts_R or ("",)
        share = host_memory.available() / hosts_R.count(hosts_R[self._ranks.rank])
        before = host_memory.resident()
        return before, before + max(0.0, _SHARE * share - kept)
