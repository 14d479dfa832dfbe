"""RUN/profile: a window of steps under torch's profiler, as a trace, a table of operations and the memory of a GPU."""

from __future__ import annotations

import gzip
import os
import shutil
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data_pipeline.durable import commit, partial_name, write_whole
from train.config import Profile
from train.distributed import Ranks
from train.errors import UserError, first_line
from train.monitor.logs import log

_ROWS = 30  # of the table
_MEMORY_EVENTS = 200_000  # the newest that a snapshot holds
_END = b"}"  # of a whole trace
_NO_MEMORY = "profile.memory: no snapshot is written: that is a record of CUDA's allocator, and this is a processor."


class Window:
    """The steps that the configuration asks for, on rank 0. What goes wrong here costs the trace, never the run."""

    def __init__(self, settings: Profile, run: Path, ranks: Ranks) -> None:
        self._first = settings.start_step if ranks.rank == 0 else None
        self._last = (settings.start_step or 0) + settings.steps - 1
        self._folder = run / "profile"
        self._ranks = ranks
        self._is_gpu = ranks.device.type == "cuda"
        self._memory = settings.memory
        self._done = 0  # the newest step in the trace
        self._profile: profile | None = None
        self._step: record_function | None = None

    @property
    def _records_memory(self) -> bool:
        return self._memory and self._is_gpu

    def before(self, step: int) -> None:
        """This step comes next."""
        if step == self._first:
            self._begin()
        if self._profile:
            self._step = record_function(f"ProfilerStep#{step}")  # TensorBoard finds steps by this name
            self._step.__enter__()

    def after(self, step: int) -> None:
        """This step is done."""
        self._leave_step()
        self._done = step
        if step == self._last:
            self.close()

    def close(self) -> None:
        """Write what was profiled so far: a run may stop inside the window."""
        self._leave_step()
        if self._profile is None:
            return
        self._ranks.pulse.says("writes a trace")
        finished, self._profile = self._profile, None
        try:
            finished.stop()
            if self._first is not None and self._done >= self._first:
                self._write(finished)
        except (OSError, RuntimeError, UserError) as error:
            log.warning("%s: no trace is written (%s); the run goes on", self._folder, first_line(error))
        finally:
            if self._records_memory:
                torch.cuda.memory._record_memory_history(enabled=None)

    def _begin(self) -> None:
        kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
        started = profile(activities=kinds if self._is_gpu else kinds[:1])
        try:
            started.start()
            if self._records_memory:
                torch.cuda.memory._record_memory_history(max_entries=_MEMORY_EVENTS)
        except RuntimeError as error:
            log.warning("profile.start_step: the profiler does not start (%s); the run goes on", first_line(error))
            return
        self._profile = started
        log.info("Steps %d to %d are profiled; %s will have the trace.", self._first, self._last, self._folder)
        if self._memory and not self._is_gpu:
            log.info(_NO_MEMORY)

    def _leave_step(self) -> None:
        if self._step:
            self._step.__exit__(None, None, None)
            self._step = None

    def _write(self, finished: profile) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        stem = self._folder / f"rank{self._ranks.rank}-steps-{self._first}-{self._done}"
        order = "self_device_time_total" if self._is_gpu else "self_cpu_time_total"
        table = finished.key_averages().table(order, _ROWS)
        write_whole(stem.with_suffix(".txt"), table.encode())
        trace = stem.with_suffix(".pt.trace.json.gz")  # TensorBoard looks for this ending
        _write_trace(finished, trace)
        log.info(
            "%s has the trace of steps %d to %d: open it on https://ui.perfetto.dev or with tensorboard --logdir %s "
            "(plugin torch-tb-profiler); %s has the most expensive operations.",
            trace,
            self._first,
            self._done,
            self._folder,
            stem.with_suffix(".txt").name,
        )
        if self._records_memory:
            _write_memory(stem.with_suffix(".memory.pickle"))


def _write_trace(finished: profile, path: Path) -> None:
    """Whole or not at all. Raises OSError and UserError where the disk refuses it."""
    plain, packed = path.with_name(f"{path.stem}.plain"), partial_name(path)
    try:
        finished.export_chrome_trace(str(plain))
        _refuse_torn(plain)
        with plain.open("rb") as source, gzip.open(packed, "wb", compresslevel=6) as target:
            shutil.copyfileobj(source, target)
        commit(path)
    finally:
        plain.unlink(missing_ok=True)
        packed.unlink(missing_ok=True)


def _refuse_torn(trace: Path) -> None:
    """The profiler writes without looking at what the disk says."""
    with trace.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 16))
        if not file.read().rstrip().endswith(_END):
            raise UserError(f"{trace}: cannot be written whole: is the disk full?")


def _write_memory(path: Path) -> None:
    """torch has no other format for it than a pickle, which its own page opens."""
    torch.cuda.memory._dump_snapshot(str(path))
    log.info("%s has the GPU's memory over these steps: open it on https://pytorch.org/memory_viz.", path)
