"""The records of a run as columns of numbers, and columns as curves of few points.

Legend: N records or points, B buckets of neighbouring points.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from train.monitor.metrics import each_record

MOST_POINTS = 2_000  # of a curve
SMOOTHED_OVER = 0.02  # of a curve's points: neighbours that a point of the smoothed curve is the mean of
Columns = Mapping[str, np.ndarray]  # a number for each record: NaN where it has none, infinity where it is not finite


@dataclass(frozen=True, slots=True)
class Curve:
    """Finite points in the order of the records."""

    x_N: np.ndarray
    y_N: np.ndarray


@dataclass(frozen=True, slots=True)
class Thinned:
    """Buckets of a curve: means, and the lowest and highest value of each."""

    x_B: np.ndarray
    y_B: np.ndarray
    low_B: np.ndarray
    high_B: np.ndarray


def read_columns(path: Path) -> Columns:
    """The numbers of a metrics file, 8 bytes each. Raises UserError where it cannot be read."""
    columns: dict[str, array[float]] = {}
    count = 0
    for record in each_record(path):
        for name, value in record.items():
            if value is None or type(value) in (int, float):
                column = columns.setdefault(name, array("d"))
                _fill(column, count)
                column.append(math.inf if value is None else value)
        count += 1
    for column in columns.values():
        _fill(column, count)
    return {name: np.frombuffer(column) for name, column in columns.items()}


def _fill(column: array[float], length: int) -> None:
    if len(column) < length:
        column.extend([math.nan] * (length - len(column)))


def curve(columns: Columns, name: str, by: str = "step") -> Curve:
    """The finite values of a column over those of another one; empty where there is no such column."""
    if name not in columns or by not in columns:
        return Curve(np.empty(0), np.empty(0))
    x_N, y_N = columns[by], columns[name]
    kept = np.isfinite(x_N) & np.isfinite(y_N)
    return Curve(x_N[kept], y_N[kept])


def heads(columns: Columns) -> list[str]:
    """What the objective trains, in the order of the records: whatever has an accuracy and a loss."""
    ours = (name for name in columns if not name.startswith(("validation_", "probe_")))
    named = [name.removesuffix("_accuracy") for name in ours if name.endswith("_accuracy")]
    return [head for head in named if f"{head}_loss" in columns and head.isidentifier()]


def smoothed(values_N: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and window // 2 neighbours on each side, as far as they exist."""
    sums = np.concatenate([[0.0], np.cumsum(values_N)])
    i_N, half = np.arange(len(values_N)), window // 2
    begin_N, end_N = np.maximum(i_N - half, 0), np.minimum(i_N + half + 1, len(values_N))
    means_N: np.ndarray = (sums[end_N] - sums[begin_N]) / (end_N - begin_N)
    return means_N


def smoothing_window(points: int) -> int:
    return max(1, round(SMOOTHED_OVER * points))


def thinned(points: Curve, most: int = MOST_POINTS) -> Thinned:
    """At most `most` buckets of neighbours, equal in number up to one."""
    count = len(points.x_N)
    buckets = min(most, count)
    if not buckets:
        return Thinned(*(np.empty(0) for _ in range(4)))
    starts_B = np.arange(buckets) * count // buckets
    sizes_B = np.diff(np.append(starts_B, count))
    x_B, y_B = (np.add.reduceat(values_N, starts_B) / sizes_B for values_N in (points.x_N, points.y_N))
    return Thinned(x_B, y_B, np.minimum.reduceat(points.y_N, starts_B), np.maximum.reduceat(points.y_N, starts_B))
