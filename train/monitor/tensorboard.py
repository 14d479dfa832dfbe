"""RUN/tensorboard: the records of metrics.jsonl as curves by step; RUN/tensorboard/by_tokens: losses by tokens seen."""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from train.errors import UserError
from train.monitor.growing import GrowingFile

_GROUPS = {
    "learning_rate": "optimizer/learning_rate",
    "grad_norm": "optimizer/grad_norm",
    "skipped_updates": "optimizer/skipped_updates",
    "tokens_per_second": "speed/tokens_per_second",
    "step_seconds": "speed/step_seconds",
    "tflops_per_second": "speed/tflops_per_second",
    "mfu": "speed/mfu",
    "data_wait_seconds": "speed/data_wait_seconds",
    "forward_seconds": "speed/forward_seconds",
    "backward_seconds": "speed/backward_seconds",
    "optimizer_seconds": "speed/optimizer_seconds",
    "rank_work_min_seconds": "ranks/min_seconds",
    "rank_work_median_seconds": "ranks/median_seconds",
    "rank_work_max_seconds": "ranks/max_seconds",
    "slowest_rank": "ranks/slowest_rank",
    "tokens_seen": "progress/tokens_seen",
    "epoch": "progress/epoch",
    "damaged_rows": "progress/damaged_rows",
    "damaged_blocks": "progress/damaged_blocks",
    "goodput": "goodput/goodput",
    "starts": "goodput/starts",
    "padding_share": "data/padding_share",
    "tokens_per_second_per_device": "speed/tokens_per_second_per_device",
    "checkpoint_seconds": "speed/checkpoint_seconds",
    "memory_peak_gb": "memory/peak_gb",
    "memory_reserved_gb": "memory/reserved_gb",
}
_PREFIXES = {"probe_": "probes", "grad_norm_": "grad_norm", "epoch_": "epoch"}
BY_TOKENS = "by_tokens/"  # TensorBoard shows one kind of x axis in a chart, hence other names
_TRAINED = ("_loss", "_accuracy")

_numbers = itertools.count()  # of the event files of this process


class Curves:
    """Scalars of one run. A resumed run declares what lies beyond its step void, so that curves never overlap.

    `resume_step` is the number on the x axis from which the run goes on: steps, or tokens.

    The event file is written here, record by record, and not by torch's SummaryWriter: its thread ends with a traceback
    when the disk is full, and nobody knows what was written by then.
    """

    def __init__(self, folder: Path, resume_step: int) -> None:
        """Begin an event file of this start. Raises UserError where that is impossible."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{folder}: cannot be written ({error.strerror})") from error
        # TensorBoard reads the files of a folder in the order of their names.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers):06d}"
        self._file = GrowingFile(folder / name)
        self._append(Event(file_version="brain.Event:2"))
        self._append(Event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)))

    def write(self, record: Mapping[str, float]) -> None:
        scalars = {_tag(name): value for name, value in record.items() if name != "step"}
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._append(Event(step=int(record["step"]), summary=Summary(value=values)))

    def write_by_tokens(self, record: Mapping[str, float]) -> None:
        """Losses and accuracies alone, at the number of tokens seen."""
        scalars = {_tag(name): value for name, value in record.items() if name == "loss" or name.endswith(_TRAINED)}
        values = [Summary.Value(tag=BY_TOKENS + tag, simple_value=value) for tag, value in scalars.items()]
        self._append(Event(step=int(record["tokens_seen"]), summary=Summary(value=values)))

    def summary(self, summary: Summary, step: int = 0) -> None:
        """Anything but scalars; at step 0 what belongs to no step."""
        self._append(Event(step=step, summary=summary))

    def close(self) -> None:
        self._file.close()

    def _append(self, event: Event) -> None:
        event.wall_time = time.time()
        framed = io.BytesIO()
        RecordWriter(framed).write(event.SerializeToString())
        self._file.append(framed.getvalue())


class TensorBoard:
    """The curves of a run by steps and by tokens."""

    def __init__(self, folder: Path, resume_step: int, tokens_seen: int) -> None:
        """Raises UserError where the folder cannot be written."""
        self.by_steps, self.by_tokens = Curves(folder, resume_step), Curves(folder / "by_tokens", tokens_seen)

    def write(self, record: Mapping[str, float]) -> None:
        self.by_steps.write(record)
        if "tokens_seen" in record:
            self.by_tokens.write_by_tokens(record)

    def close(self) -> None:
        self.by_steps.close()
        self.by_tokens.close()


def _tag(name: str) -> str:
    """Curves of one kind stand side by side: loss/mlm beside loss/validation_mlm."""
    if name in _GROUPS:
        return _GROUPS[name]
    if name.endswith("_seconds_total"):
        return f"goodput/{name}"
    for before, group in _PREFIXES.items():
        if name.startswith(before):
            return f"{group}/{name.removeprefix(before)}"
    if name.endswith("_target_share"):
        return f"masks/{name.removesuffix('_target_share')}"
    what, _, kind = name.rpartition("_")
    return f"{kind}/{what or 'total'}" if kind in ("loss", "accuracy") else f"other/{name}"
