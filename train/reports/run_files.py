"""What a report reads of a run folder; nothing in it is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from train.config import Config
from train.errors import UserError
from train.monitor import events
from train.reports.curves import Columns, read_columns
from train.status import config_of, read_object


@dataclass(frozen=True, slots=True)
class RunFiles:
    """A run that has at least one step."""

    path: Path
    config: Config
    columns: Columns
    incidents: list[dict[str, Any]]
    account: Mapping[str, Any]  # goodput.json, empty where there is none


def read_run(run: Path) -> RunFiles:
    """Raises UserError where `run` is no run folder, or one without steps."""
    config = config_of(run)
    columns = read_columns(run / "metrics.jsonl")
    if "loss" not in columns:
        raise UserError(f"{run}: no step is recorded yet in metrics.jsonl; ask again when the run has done some")
    incidents = [record for record in events.of_run(run) if type(record["step"]) is int]
    return RunFiles(run, config, columns, incidents, read_object(run / "goodput.json"))


def steps_done(run: RunFiles) -> int:
    """The last step that has a record with a loss, also where that was not finite."""
    return int(run.columns["step"][~np.isnan(run.columns["loss"])].max())
