"""Which charts a run has, and which curves stand in each: only what its records have finite numbers of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from train.reports.curves import Columns, curve, heads

_LOSS, _ACCURACY = "loss (nats per target)", "accuracy (share of targets)"
_PROBE, _NO_SCORE, _SHARE = "probe_", "probe_seconds", "_target_share"


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: a column of the records, drawn by its points or smoothed; then the points may stand faint behind it."""

    column: str
    label: str
    is_smoothed: bool = False
    has_points_behind: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """Curves over steps, with a name that is unique on a page."""

    name: str
    title: str
    y_label: str
    lines: tuple[Line, ...]
    is_log: bool = False
    has_incidents: bool = False


def charts(columns: Columns) -> list[Chart]:
    """Those of a run, in the order of the page, each with the curves that it has points for."""
    kept = []
    for chart in _all(columns):
        if lines := tuple(line for line in chart.lines if len(curve(columns, line.column).x_N)):
            kept.append(replace(chart, lines=lines))
    return kept


def _all(columns: Columns) -> Iterator[Chart]:
    trained = heads(columns)
    if len(trained) != 1 or not np.array_equal(columns["loss"], columns[f"{trained[0]}_loss"], equal_nan=True):
        lines = (_trained("loss", "training"), Line("validation_loss", "held out"))
        yield Chart("loss", "Loss", "weighted sum of the losses", lines, has_incidents=True)
    for head in trained:
        lines = (_trained(f"{head}_loss", "training"), Line(f"validation_{head}_loss", "held out"))
        others = Line(f"validation_{head}_shuffled_loss", "held out, with another document's state")
        frequencies = Line(f"validation_{head}_frequencies_loss", "knowing frequencies alone")
        yield Chart(f"{head}-loss", f"Loss: {head}", _LOSS, (*lines, others, frequencies), has_incidents=True)
    for head in trained:
        lines = (_trained(f"{head}_accuracy", "training"), Line(f"validation_{head}_accuracy", "held out"))
        constant = Line(f"validation_{head}_most_frequent_accuracy", "held out, always the most frequent token")
        yield Chart(f"{head}-accuracy", f"Accuracy: {head}", _ACCURACY, (*lines, constant))
    yield Chart("probes", "Probes", "score", tuple(_named(columns, _PROBE)))
    yield Chart("learning-rate", "Learning rate", "learning rate", (Line("learning_rate", "learning rate"),))
    norm = (_trained("grad_norm", "before clipping"),)
    yield Chart("grad-norm", "Gradient norm", "L2 norm", norm, is_log=True)
    parts = tuple(_named(columns, "grad_norm_", is_smoothed=True))
    yield Chart("grad-norm-parts", "Gradient norm of each part", "L2 norm", parts, is_log=True)
    yield from _of_the_data(columns)
    yield from _of_the_machine(columns)


def _of_the_data(columns: Columns) -> Iterator[Chart]:
    masks = (name for name in columns if name.endswith(_SHARE))
    lines = tuple(Line(name, name.removesuffix(_SHARE), is_smoothed=True, has_points_behind=True) for name in masks)
    yield Chart("masks", "Mask rate", "share of the tokens that is predicted", lines)
    epochs = (Line("epoch", "of all"), *_named(columns, "epoch_"))
    yield Chart("epochs", "Epochs", "times that the data were read", epochs)
    blocks = (Line("damaged_blocks", "blocks, since the start"), Line("damaged_rows", "rows, of the whole run"))
    if any(len(found) and found.max() for found in (curve(columns, line.column).y_N for line in blocks)):
        yield Chart("damage", "Quarantined data", "number", blocks)


def _of_the_machine(columns: Columns) -> Iterator[Chart]:
    yield Chart("speed", "Speed", "tokens/s", (_trained("tokens_per_second", "all devices"),))
    yield Chart("mfu", "MFU", "share of the device's peak", (_trained("mfu", "MFU"),))
    parts = ("forward", "backward", "optimizer", "data_wait")
    lines = tuple(Line(f"{part}_seconds", part.replace("_", " "), is_smoothed=True) for part in ("step", *parts))
    yield Chart("step-parts", "Seconds of a step and its parts", "seconds", lines)
    memory = (Line("memory_peak_gb", "peak"), Line("memory_reserved_gb", "reserved"))
    yield Chart("memory", "Memory of rank 0", "GB (10⁹ bytes)", memory)
    goodput = (Line("goodput", "since the first start"),)
    yield Chart("goodput", "Goodput", "steps' share of the wall time", goodput)


def _trained(column: str, label: str) -> Line:
    return Line(column, label, is_smoothed=True, has_points_behind=True)


def _named(columns: Columns, before: str, *, is_smoothed: bool = False) -> Iterator[Line]:
    """The columns whose names begin alike, by what follows."""
    for name in columns:
        if name.startswith(before) and name != _NO_SCORE:
            yield Line(name, name.removeprefix(before).replace("_", " "), is_smoothed)
