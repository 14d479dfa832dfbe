"""The headline numbers of a run, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from train.reports.curves import Columns, curve
from train.reports.run_files import RunFiles, steps_done

LAST_SHARE = 0.01  # of the steps, at the end: the training loss is their mean
LAST_STEPS = f"mean of the last {LAST_SHARE:.0%} of steps"
NONE = "-"


def summary(run: RunFiles, accuracies_of: Sequence[str]) -> dict[str, str]:
    """By their names, in the order in which they are shown; NONE where a run has no such number.

    `accuracies_of` are heads, also those of other runs.
    """
    columns = run.columns
    told = {"objective": run.config.objective.name, "steps": f"{steps_done(run):,} of {run.config.run.steps:,}"}
    told |= {"tokens": _tokens(columns), "training loss": _training_loss(columns)}
    told |= dict(_validation(columns, accuracies_of))
    told["tokens/s"] = _median(columns, "tokens_per_second", ",.0f")
    told["MFU"] = _median(columns, "mfu", ".1%")
    told |= {"goodput": _goodput(run), "starts": str(run.account.get("starts", NONE))}
    return told | {"incidents": f"{len(run.incidents):,}"}


def _tokens(columns: Columns) -> str:
    seen_N = curve(columns, "tokens_seen").y_N
    return f"{_short(seen_N[-1])}" if len(seen_N) else NONE


def _short(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def _training_loss(columns: Columns) -> str:
    losses_N = columns["loss"][~np.isnan(columns["loss"])]
    last_N = losses_N[-max(1, math.ceil(LAST_SHARE * len(losses_N))) :]
    finite_N = last_N[np.isfinite(last_N)]
    if not len(finite_N):
        return "not finite"
    words = f"{finite_N.mean():.4f}"
    missing = len(last_N) - len(finite_N)
    return f"{words} ({missing} of {len(last_N)} not finite)" if missing else words


def _validation(columns: Columns, heads: Sequence[str]) -> Iterator[tuple[str, str]]:
    losses = curve(columns, "validation_loss")
    yield "validation loss", f"{losses.y_N[-1]:.4f}" if len(losses.y_N) else NONE
    best = int(losses.y_N.argmin()) if len(losses.y_N) else 0
    yield "lowest at step", f"{losses.y_N[best]:.4f} at {int(losses.x_N[best]):,}" if len(losses.y_N) else NONE
    for head in heads:
        hits_N = curve(columns, f"validation_{head}_accuracy").y_N
        yield f"{head} accuracy", f"{hits_N[-1]:.4f}" if len(hits_N) else NONE


def _median(columns: Columns, name: str, form: str) -> str:
    values_N = curve(columns, name).y_N
    return format(np.median(values_N), form) if len(values_N) else NONE


def _goodput(run: RunFiles) -> str:
    seconds = run.account.get("seconds", {})
    total = sum(seconds.values())
    return f"{seconds.get('steps', 0.0) / total:.1%}" if total else NONE
