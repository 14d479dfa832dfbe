"""From sums on the device to records: collected step by step, read back and written once per log interval.

Legend: S steps since the last flush, H heads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import text

from train.distributed import Ranks
from train.monitor.events import Unread, append, page
from train.monitor.goodput import Goodput
from train.monitor.logs import log
from train.monitor.memory import memory_peaks
from train.monitor.metrics import MetricsFile
from train.monitor.progress import Progress
from train.monitor.slow_ranks import SlowRanks
from train.monitor.step_parts import StepParts
from train.monitor.tensorboard import TensorBoard
from train.monitor.writers import Writer

Record = dict[str, float]
_LARGEST = 700.0  # nats: the exponential of more is no number


@dataclass(frozen=True, slots=True)
class StepSums:
    """One optimizer step of this rank: sums over its targets, and the global numbers of targets and tokens."""

    step: int
    losses_H: torch.Tensor
    hits_H2: torch.Tensor
    targets_H: tuple[int, ...]
    tokens: int
    data_wait_seconds: float
    grad_norm: torch.Tensor | float | None
    others: Mapping[str, float]  # already known on the host
    flops: int = 0  # of all ranks (train/flops.py)
    grad_norm_parts: Mapping[str, torch.Tensor] = field(default_factory=dict)  # in steps that measure it


def head_metrics(heads: tuple[str, ...], sums_H3: list[list[float]], targets_H: tuple[int, ...]) -> Record:
    """Mean loss and accuracy of each head, and the accuracy of always guessing the most frequent token.

    The mean over no target is no number: a loss of 0 would look like one.
    """
    record: Record = {}
    for head, (loss, hits, frequent), targets in zip(heads, sums_H3, targets_H, strict=True):
        many = targets or math.nan
        record |= {f"{head}_loss": loss / many, f"{head}_accuracy": hits / many}
        record |= {f"{head}_perplexity": math.exp(min(loss / many, _LARGEST)), f"{head}_targets": targets}
        record[f"{head}_most_frequent_accuracy"] = frequent / many
    return record


def total_loss(record: Mapping[str, float], heads: tuple[str, ...], weights: tuple[float, ...]) -> float:
    """What is minimised: the weighted sum of the mean losses of the heads that have targets; no number without any."""
    terms = [w * record[f"{head}_loss"] for head, w in zip(heads, weights, strict=True) if record[f"{head}_targets"]]
    return sum(terms) if terms else math.nan


def summed(sums: list[tuple[torch.Tensor, torch.Tensor]], ranks: Ranks) -> list[list[list[float]]]:
    """[S][H][loss, hits, most frequent hits] over all ranks, in fp64 so that the order of ranks leaves no trace."""
    rows = [torch.cat([losses_H[:, None].double(), hits_H2.double()], dim=1) for losses_H, hits_H2 in sums]
    sums_SH3 = torch.stack(rows)
    if ranks.world_size > 1:
        dist.all_reduce(sums_SH3)
    return sums_SH3.tolist()


@dataclass(slots=True)
class Writers:
    """Rank 0's files and terminal."""

    metrics: MetricsFile
    samples: MetricsFile  # train/monitor/samples.py
    others: list[Writer]
    progress: Progress
    goodput: Goodput
    run: Path
    unread: Unread

    @classmethod
    def open(
        cls, run: Path, steps: int, resume_step: int, tokens_seen: int, others: Sequence[Writer] | None = None
    ) -> Writers:
        """Go on from a step, and the tokens seen until then; TensorBoard alone stands beside unless `others` do."""
        metrics = MetricsFile(run / "metrics.jsonl", resume_step)
        samples = MetricsFile(run / "samples.jsonl", resume_step)
        goodput = Goodput.open(run / "goodput.json", resume_step, metrics.cut)
        if others is None:
            others = [TensorBoard(run / "tensorboard", resume_step, tokens_seen)]
        return cls(metrics, samples, list(others), Progress(steps, resume_step, rank=0), goodput, run, Unread(run))

    def write(self, records: list[Record]) -> None:
        self.goodput.step = int(records[-1]["step"])
        records[-1] |= self.goodput.so_far()
        for record in records[:-1]:
            self.write_one(record)
        self.write_one(records[-1], self._happened(int(records[-1]["step"])))
        self.progress.show(records[-1])

    def tell(self, step: int, kind: str, words: str) -> None:
        """Something happened to the run; the next record written has it, too."""
        append(self.run, step, kind, words)

    def _happened(self, step: int) -> dict[str, str]:
        """What the record says of new incidents; TensorBoard has all of them on one page, renewed with each."""
        if not (new := self.unread.look()):
            return {}
        self.show(text("incidents", page(self.run)), step)
        return {"incident": "; ".join(new)}

    def write_one(self, record: Record, words: Mapping[str, str] | None = None) -> None:
        self.metrics.write(record | dict(words or {}))
        for writer in self.others:
            writer.write(record)

    def show(self, summary: Summary, step: int = 0) -> None:
        """No record: for TensorBoard alone, where it is among the writers; at step 0 what belongs to no step."""
        for writer in self.others:
            if isinstance(writer, TensorBoard):
                writer.by_steps.summary(summary, step)

    def sync(self) -> None:
        self.metrics.sync()
        self.samples.sync()

    def close(self) -> None:
        self.metrics.close()
        self.samples.close()
        for writer in self.others:
            writer.close()
        self.progress.close()


@dataclass(slots=True)
class Recorder:
    """Keeps steps on the device until `flush`, where all ranks meet; rank 0 writes."""

    ranks: Ranks
    heads: tuple[str, ...]
    weights: tuple[float, ...]
    writers: Writers | None
    parts: StepParts | None = None  # of the engine's steps
    peak_tflops: float | None = None  # of a device in the precision of the run, where it is known
    last: Record = field(default_factory=dict)
    held: Record | None = None  # of the last step, not written yet: its validation was cut short
    _pending: list[StepSums] = field(default_factory=list)
    _read: list[list[list[float]]] = field(default_factory=list)  # sums of the first of them over all ranks
    _since: float = field(default_factory=time.perf_counter)
    _until: float | None = None
    _slow: SlowRanks = field(init=False)
    _impossible: bool = False  # whether more than the peak was measured once

    def __post_init__(self) -> None:
        self._slow = SlowRanks(self.ranks)

    def add(self, sums: StepSums) -> None:
        self._pending.append(sums)
        if self.writers:
            self.writers.goodput.waited(sums.data_wait_seconds)

    def begin(self, started: float) -> None:
        """This process started at `started` of time.monotonic(); until `pause` or `go_on` its time is start-up."""
        if self.writers:
            self.writers.goodput.begin(started)

    def pause(self, part: str = "checkpoint") -> None:
        """What follows is not training time but that of another part of the run's goodput, until `go_on`."""
        if self.ranks.device.type == "cuda":
            torch.cuda.synchronize()
        self._until = self._until or time.perf_counter()
        if self.writers:
            self.writers.goodput.enter(part)

    def write_start(self, measured: Mapping[str, float]) -> None:
        """What was measured before the first step, as a record of step 0."""
        if self.writers:
            record = {"step": 0, **measured}
            self.writers.write_one(record)

    def go_on(self) -> None:
        """What follows is training; how the time was spent until here is safe on the disk."""
        if self.writers:
            self.writers.goodput.write()
            self.writers.goodput.enter("steps")
        self._since, self._until = time.perf_counter(), None

    def read_back(self) -> list[tuple[int, float]]:
        """(step, total loss) of the steps that were not read back yet. All ranks meet here, and get the same."""
        new = self._pending[len(self._read) :]
        if not new:
            return []
        self._read += summed([(sums.losses_H, sums.hits_H2) for sums in new], self.ranks)
        pairs = zip(new, self._read[-len(new) :], strict=True)
        records = [(sums.step, head_metrics(self.heads, sums_H3, sums.targets_H)) for sums, sums_H3 in pairs]
        return [(step, total_loss(record, self.heads, self.weights)) for step, record in records]

    def flush(self, validation: Mapping[str, float] | None = None, *, hold_last: bool = False) -> None:
        """Write the pending steps; `validation` belongs to the last of them, whose record may be held instead."""
        records = [*([] if self.held is None else [self.held]), *self._records()]
        if not records:
            return
        records[-1] |= validation or {}
        self.last, self.held = records[-1], None
        if hold_last:
            self.held = records.pop()
        if self.writers and records:
            self.writers.write(records)

    def _records(self) -> list[Record]:
        """Those of the pending steps, of which none is pending then."""
        if not self._pending:
            return []
        self.read_back()
        now = self._until or time.perf_counter()
        seconds = (now - self._since) / len(self._pending)
        speed = sum(sums.tokens for sums in self._pending) / (now - self._since)
        times = {"tokens_per_second": round(speed, 1), "step_seconds": round(seconds, 5)}
        times["tokens_per_second_per_device"] = round(speed / self.ranks.world_size, 1)
        times |= self._utilisation(now - self._since)
        pairs = zip(self._pending, self._read, strict=True)
        records = [self._record(sums, sums_H3) | times for sums, sums_H3 in pairs]
        records[-1] |= memory_peaks(self.ranks.device) | self._work()
        self._pending.clear()
        self._read.clear()
        self._since = now
        return records

    def _work(self) -> Record:
        """Seconds of a step's parts on this rank, and how the ranks' own work compares: all ranks come here."""
        if self.parts is None:
            return {}
        steps, seconds = len(self._pending), self.parts.take()
        waited = sum(sums.data_wait_seconds for sums in self._pending)
        compared, sentence = self._slow.measure((waited + seconds["forward"]) / steps)
        if sentence:
            step = self._pending[-1].step
            log.warning("step %d: %s", step, sentence)
            if self.writers:
                self.writers.tell(step, "slow rank", sentence)
        return {f"{part}_seconds": round(total / steps, 6) for part, total in seconds.items()} | compared

    def _utilisation(self, seconds: float) -> Record:
        """TFLOP/s of each device over the pending steps, and its share of what the device can do at most."""
        flops = sum(sums.flops for sums in self._pending)
        if not flops:
            return {}
        tflops = flops / seconds / self.ranks.world_size / 1e12
        record: Record = {"tflops_per_second": float(f"{tflops:.5g}")}
        if self.peak_tflops and tflops <= self.peak_tflops:
            record["mfu"] = round(tflops / self.peak_tflops, 4)
        elif self.peak_tflops and not self._impossible:
            self._impossible = True
            words = "%.4g TFLOP/s of a device that is known for at most %.4g: one of the two is wrong, there is no MFU"
            log.warning(words, tflops, self.peak_tflops)
        return record

    def close(self) -> None:
        """Close the files of a start that another one of this process follows."""
        if self.writers:
            self.writers.goodput.write()
            self.writers.close()

    def say_goodput(self) -> None:
        """One sentence at the end of a start: where the time of the run went."""
        if self.writers:
            self.writers.goodput.write()
            log.info(self.writers.goodput.sentence())

    def _record(self, sums: StepSums, sums_H3: list[list[float]]) -> Record:
        heads = head_metrics(self.heads, sums_H3, sums.targets_H)
        heads = {name: value for name, value in heads.items() if "most_frequent" not in name}
        shares = zip(self.heads, sums.targets_H, strict=True)
        heads |= {f"{head}_target_share": round(targets / max(1, sums.tokens), 5) for head, targets in shares}
        record: Record = {"step": sums.step, "loss": total_loss(heads, self.heads, self.weights), **heads}
        if sums.grad_norm is not None:
            record["grad_norm"] = float(sums.grad_norm)
        record |= {f"grad_norm_{part}": float(f"{norm:.6g}") for part, norm in sums.grad_norm_parts.items()}
        return {**record, **sums.others, "data_wait_seconds": round(sums.data_wait_seconds, 6)}
