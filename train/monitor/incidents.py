"""Steps at which something went wrong, and the rows of their global batches: those lines of RUN/incidents.jsonl.

One JSON object a line: {"time", "step", "kind", "rows", "sequence_length", "epoch", ...}; rows are SOURCE/EPOCH/ROW.

    non-finite update   nothing was applied; "suspects" are the rows of micro-batches whose own loss is not finite
    loss spike          "loss", "expected", "deviations", as spikes.py has it

A step that was done again after a restart may stand twice.

Legend: A micro-batches of a rank, N rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.data.order import FILLER_ROW, Cursor
from train.data.stream import Walk
from train.distributed import Ranks
from train.errors import UserError
from train.monitor.events import FILE, is_torn
from train.monitor.events import read as read_all
from train.monitor.growing import GrowingFile
from train.monitor.logs import log
from train.monitor.spikes import Spike, SpikeRule
from train.training_data import length_at, stretches


@dataclass(frozen=True, slots=True)
class _StepRead:
    """What this rank read in a step."""

    row_ids_A: list[torch.Tensor]  # of each document
    epoch: int
    cursor: Cursor


class Incidents:
    """Kept by all ranks alike; rank 0 writes. Every method is called by all ranks at the same step."""

    def __init__(self, config: Config, ranks: Ranks, walk: Walk, state: Mapping[str, float]) -> None:
        """`state` is that of `rule` in the checkpoint that the run goes on from, empty where it begins."""
        self.rule = SpikeRule.of(state)
        self._config = config
        self._ranks = ranks
        self._walk = walk
        self._read: dict[int, _StepRead] = {}  # by step, until its loss was judged
        self._path = Path(config.run.directory) / FILE
        self._file: GrowingFile | None = None
        self._left_out_at = -1
        self._changes = {start for start, _ in stretches(config)}
        self._changes |= {at.step for at in config.objective.mask_ratio_at}

    def remember(self, step: int, batches: Sequence[Batch], cursor: Cursor) -> None:
        """The step just done read these batches, on the host, and ended at `cursor`."""
        self._read[step] = _StepRead([batch.row_ids_D for batch in batches], batches[0].epoch, cursor)

    def left_out(self, step: int, losses_AH: torch.Tensor, loss_scale: float | None) -> None:
        """Nothing was applied in this step; `losses_AH` are this rank's sums of each micro-batch and head.

        Finite losses under a `loss_scale` of fp16 above 1 are the search for that scale, and no incident.
        """
        flags_A = (~losses_AH.isfinite().all(dim=1)).tolist()
        [flagged] = self._ranks.sum([sum(flags_A)])
        if flagged or not loss_scale or loss_scale <= 1:
            names = self._write(step, "non-finite update", {}, flags_A)
            if step != self._left_out_at + 1:  # of many in a row the first is enough
                log.warning("step %d: %s", step, names)
            self._left_out_at = step

    def judge(self, losses: Iterable[tuple[int, float]]) -> list[Spike]:
        """The spikes among the total losses of the next steps, given as (step, loss); they are written down."""
        spikes = []
        for step, loss in losses:
            if step - 1 in self._changes:
                self.rule = SpikeRule()
            if spike := self.rule.judge(step, loss, self._config.incidents):
                spikes.append(spike)
                self._note(spike)
            self._read.pop(step, None)
        return spikes

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _note(self, spike: Spike) -> None:
        numbers = {"loss": spike.loss, "expected": spike.expected, "deviations": round(spike.deviations, 2)}
        where = self._write(spike.step, "loss spike", numbers)
        words = "step %d: loss %.4f where %.4f was expected, %.1f deviations above: %s"
        log.warning(words, spike.step, spike.loss, spike.expected, spike.deviations, where)

    def _write(self, step: int, kind: str, numbers: Mapping[str, float], flags_A: Sequence[bool] = ()) -> str:
        """Append the incident; the words on where its rows are."""
        read = self._read[step]
        ids_N, flags_N = _of_all_ranks(self._ranks, read.row_ids_A, flags_A or [False] * len(read.row_ids_A))
        record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "kind": kind, **numbers}
        record |= self._walk.progress(read.cursor)
        record["sequence_length"] = length_at(self._config, step - 1)
        record["rows"] = self._walk.row_names(ids_N, read.epoch, read.cursor)
        suspects = f", {flags_N.sum()} of them suspects," if flags_A else ""
        if flags_A:
            record["suspects"] = self._walk.row_names(ids_N[flags_N], read.epoch, read.cursor)
        if self._ranks.rank == 0:
            self._append(record)
        show = f"python -m train data-report {self._config.run.directory}/config.yaml --incident {step}"
        return f"its {len(ids_N)} rows{suspects} are in {self._path}; to read them: {show}"

    def _append(self, record: Mapping[str, Any]) -> None:
        line = (json.dumps(record) + "\n").encode()
        try:
            if self._file is None:
                # What a killed process left of its last line ends here.
                torn = self._path.exists() and is_torn(self._path)
                self._file = GrowingFile(self._path)
                line = b"\n" + line if torn else line
        except (OSError, UserError) as error:
            log.warning("%s: cannot be written (%s): the incident is in the log alone", self._path, error)
            return
        self._file.append(line)


def read_incidents(path: Path) -> list[dict[str, Any]]:
    """Those that have rows. Raises UserError where there is no such file."""
    return [record for record in read_all(path) if "rows" in record]


def _of_all_ranks(
    ranks: Ranks, row_ids_A: Sequence[torch.Tensor], flags_A: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """(id, flag of its micro-batch) of every row that the ranks read, in the order of ranks."""
    own = [np.unique(ids_D[ids_D != FILLER_ROW].numpy()) for ids_D in row_ids_A]
    flags = [np.full(len(ids), flag) for ids, flag in zip(own, flags_A, strict=True)]
    count = sum(len(ids) for ids in own)
    counts_R = ranks.of_all(count)
    before = sum(counts_R[: ranks.rank])
    both_2N = np.zeros((2, sum(counts_R)), dtype=np.int64)
    both_2N[:, before : before + count] = np.concatenate(own), np.concatenate(flags)
    ids_N, flags_N = np.array(ranks.sum(both_2N.ravel().tolist()), dtype=np.int64).reshape(2, -1)
    return ids_N, flags_N.astype(bool)
