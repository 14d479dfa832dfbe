"""Groups of consecutive staged ranges: what one task on duplicates reads, with its records numbered through.

The number of a document is its place in document order over all ranges, whatever the ranges: what comes first stays.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.near import MINIMA
from data_pipeline.dedup.sorted_runs import Interval
from data_pipeline.staging import StagedRange

DOCUMENTS, PARAGRAPHS = "digest_D2", "paragraph_digest_P2"  # a row a record


Sketches = npt.NDArray[np.uint8]


class Group(NamedTuple):
    """Consecutive ranges that one task reads."""

    number: int
    first_range: int
    paths: tuple[Path, ...]
    starts: tuple[int, ...]  # the number of the first record of each range, and at last where the group ends

    def interval(self) -> Interval:
        """The numbers of its records."""
        return Interval(self.starts[0], max(self.starts[0], self.starts[-1] - 1))

    def size(self) -> int:
        """Records."""
        return self.starts[-1] - self.starts[0]


def rows(path: Path, name: str) -> int:
    """How many rows an array has, 0 where the range has none of this name; only the head is read."""
    staged = StagedRange(path)
    return len(staged[name]) if name in staged else 0


def numbered(group: Group) -> Iterator[tuple[Path, slice, npt.NDArray[np.uint64]]]:
    """For each range of the group: its path, where its records stand in the group, and their numbers."""
    base = group.starts[0]
    for path, (start, end) in zip(group.paths, pairwise(group.starts), strict=True):
        yield path, slice(start - base, end - base), np.arange(start, end, dtype=np.uint64)


def sketches_of(paths: Sequence[Path], starts: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]) -> Sketches:
    """uint8[N, S]: the sketches of any documents, sorted by number; `starts` are the first numbers of all ranges.

    Only the pages that hold them are read.
    """
    sketches = np.empty((len(ids), MINIMA), np.uint8)
    owners = np.searchsorted(starts, ids, "right") - 1
    for owner in np.unique(owners).tolist():
        place = slice(*np.searchsorted(owners, [owner, owner + 1]))
        sketches[place] = StagedRange(paths[owner])["sketch_DS"][ids[place] - np.uint64(starts[owner])]
    return sketches
