"""Grouping more records than memory holds: sorted files ("runs"), from which a task reads one interval of keys.

A run is an .npy file of uint64[W, N]: N records of W numbers, sorted by the first. Records are cut into groups of
consecutive ranges (one run each) and their keys into as many buckets (one task each), so that neither is large.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.durable import write_whole

Records = npt.NDArray[np.uint64]  # [W, N]


class Files(NamedTuple):
    """The files of one step: folder/00000.npy and on."""

    folder: Path
    length: int

    def path(self, number: int) -> Path:
        """The file of that number."""
        return self.folder / f"{number:05}.npy"

    def paths(self) -> Iterator[Path]:
        """All files, in order."""
        return map(self.path, range(self.length))


class Interval(NamedTuple):
    """Keys from `low` to `last`, both inside."""

    low: int
    last: int


def bucket(number: int, count: int) -> Interval:
    """The keys of one of `count` equal parts of the 64-bit numbers."""
    return Interval((number << 64) // count, ((number + 1 << 64) // count) - 1)


def cut_into_groups(sizes: Sequence[int], limit: int) -> list[int]:
    """The group of each range: as many consecutive ranges as hold at most `limit` records, at least one."""
    group, held = 0, 0
    groups: list[int] = []
    for size in sizes:
        if held and size and held + size > limit:  # no group is empty, unless all ranges are
            group, held = group + 1, 0
        held += size
        groups.append(group)
    return groups


def write_array(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an .npy file, whole or not at all; UserError when the system refuses."""
    content = io.BytesIO()
    np.save(content, array, allow_pickle=False)
    write_whole(path, content.getvalue())


def read_array(path: Path) -> npt.NDArray[np.generic]:
    """An .npy file, of which only what is used is read."""
    array: npt.NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def write_run(path: Path, records: Records) -> None:
    """Write records as a run; those with equal keys keep their order."""
    write_array(path, records[:, np.argsort(records[0], kind="stable")])


def slice_of(keys: npt.NDArray[np.uint64], interval: Interval) -> slice:
    """Where the keys of the interval stand in sorted `keys`."""
    low, last = np.array(interval, np.uint64)
    return slice(int(np.searchsorted(keys, low, "left")), int(np.searchsorted(keys, last, "right")))


def read_interval(runs: Files, interval: Interval) -> Iterator[Records]:
    """The records of the interval, run by run."""
    for path in runs.paths():
        run: npt.NDArray[np.uint64] = read_array(path)  # type: ignore[assignment]
        yield np.array(run[:, slice_of(run[0], interval)])


def joined(parts: Iterator[Records], width: int) -> Records:
    """All records of some parts."""
    return np.concatenate([np.zeros((width, 0), np.uint64), *parts], axis=1)
