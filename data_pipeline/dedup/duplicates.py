"""Which documents and paragraphs of the staged ranges are dropped as duplicates, in tasks that any process may take.

Order of the steps: equal documents (by digest), near duplicates among the others, equal paragraphs among what then is
left; always the first in document order stays. Every step leaves files in a folder, which belongs to one list of
ranges and one set of rules, and files that are there are not made again. No task holds more than a group of documents
or paragraphs or a bucket of their keys, so the outcome hangs neither on the cut into ranges nor on the workers.
Legend: D documents and P paragraphs of a range.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup import near, paragraphs
from data_pipeline.dedup.groups import DOCUMENTS, PARAGRAPHS, Group, numbered, rows
from data_pipeline.dedup.near_pairs import (
    BandRun,
    Candidates,
    Similar,
    clusters,
    write_band_run,
    write_candidates,
    write_similar,
)
from data_pipeline.dedup.sorted_runs import (
    Files,
    Interval,
    Records,
    bucket,
    cut_into_groups,
    joined,
    read_array,
    read_interval,
    write_array,
    write_run,
)
from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, UserError
from data_pipeline.staging import StagedRange

KEPT, EXACT, NEAR = 0, 1, 2
GROUP_RECORDS = 1 << 21  # that a task holds: about 60 bytes each while they are sorted
_PLAN, _STARTS, _RANGES = "plan.npy", "starts.npy", "ranges.json"


class Task(Protocol):
    """What a task writes; it is done when that is there."""

    @property
    def output(self) -> Path: ...


Item = TypeVar("Item", bound=Task)
Run = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@dataclass(frozen=True, slots=True)
class DuplicateRules:
    """What counts as a duplicate. UserError for a threshold that is no similarity."""

    exact: bool = True  # equal cleaned texts
    near_threshold: float | None = None  # estimated Jaccard similarity of n-grams from here on; None: not looked for
    paragraphs: bool = False  # equal paragraphs of at least paragraphs.MIN_BYTES

    def __post_init__(self) -> None:
        if self.near_threshold is not None and not 0 < self.near_threshold <= 1:
            raise UserError(f"near-duplicate threshold {self.near_threshold:g}: a similarity is above 0 and at most 1")

    def settings(self) -> dict[str, Any]:
        """What stands in the manifest: the rules and all that decides their outcome."""
        found: dict[str, Any] = {"exact": "xxh3_128" if self.exact else None, "near": None, "paragraphs": None}
        if self.near_threshold is not None:
            found["near"] = {"threshold": self.near_threshold} | near.settings()
        if self.paragraphs:
            found["paragraphs"] = f"xxh3_128, lines of at least {paragraphs.MIN_BYTES} bytes"
        return found


class DigestRun(NamedTuple):
    """Sort the digests of a group's records."""

    output: Path
    group: Group
    folder: Path
    of_paragraphs: bool


class Repeated(NamedTuple):
    """Find the records of an interval of digests that stood before."""

    output: Path
    runs: Files
    interval: Interval


class Flags(NamedTuple):
    """Write what becomes of each record of a group: uint8, the place of its list in `dropped` + 1, or 0."""

    output: Path
    group: Group
    dropped: tuple[Files, ...]


def find_duplicates(
    ranges: Sequence[Path], folder: Path, rules: DuplicateRules, run: Run, group_records: int = GROUP_RECORDS
) -> None:
    """Find what `rules` drop of `ranges`, which are in document order; the results stay in `folder`.

    `run` applies a function of a module to items in any process, results in any order. `group_records` bounds the
    memory of a task; a folder keeps the one it was begun with. UserError when the system refuses.
    """
    if not (folder / _PLAN).exists():
        write_array(folder / _PLAN, _plan(ranges, group_records))
    plan = read_array(folder / _PLAN)
    if plan.shape[1] != len(ranges):
        raise DataError(f"{folder}: made for {plan.shape[1]} ranges, not for {len(ranges)}; delete it")
    write_array(folder / _STARTS, np.cumsum(plan[0]) - plan[0])
    write_whole(folder / _RANGES, json.dumps([str(path) for path in ranges]).encode())
    documents = _groups(plan, ranges, DOCUMENTS)
    exact = _repeated(documents, folder, False, run) if rules.exact else Files(folder / "exact", 0)
    near_ones = Files(folder / "near", 0)
    if rules.near_threshold is not None:
        flags = _write_flags(documents, folder / "exact-flags", (exact,), run)
        near_ones = _near(documents, folder, flags, rules.near_threshold, run)
    _write_flags(documents, folder / "flags", (exact, near_ones), run)
    if rules.paragraphs:
        groups = _groups(plan, ranges, PARAGRAPHS)
        repeated = _repeated(groups, folder, True, run)
        _write_flags(groups, folder / "paragraph-flags", (repeated,), run)


def dropped(folder: Path, range_index: int, documents: int, rules: DuplicateRules) -> npt.NDArray[np.uint8]:
    """uint8[D]: KEPT, EXACT or NEAR for each document of a range. DataError where the range has not `documents`."""
    if not rules.exact and rules.near_threshold is None:
        return np.zeros(documents, np.uint8)
    return _range_flags(folder, "flags", range_index, DOCUMENTS, documents)


def dropped_paragraphs(folder: Path, range_index: int, paragraphs: int) -> npt.NDArray[np.bool_]:
    """bool[P]: whether each paragraph of a range stood in a kept document before it. DataError as in `dropped`."""
    flags_P = _range_flags(folder, "paragraph-flags", range_index, PARAGRAPHS, paragraphs)
    dropped_P: npt.NDArray[np.bool_] = flags_P != KEPT
    return dropped_P


def examples(folder: Path, limit: int) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The first near duplicates as ((range, document) dropped, (range, document) kept)."""
    starts = np.cumsum(np.concatenate([[0], read_array(folder / _PLAN)[0]]))

    def place(number: int) -> tuple[int, int]:
        index = int(np.searchsorted(starts, number, "right")) - 1
        return index, number - int(starts[index])

    pairs = read_array(folder / "near" / "00000.npy")[:, :limit]
    return [(place(int(later)), place(int(first))) for later, first in pairs.T]


def write_digest_run(task: DigestRun) -> None:
    """A run with rows (upper half, lower half, record), of paragraphs only those that may be duplicates."""
    parts = []
    for index, (path, _, ids) in enumerate(numbered(task.group)):
        digests = StagedRange(path)[PARAGRAPHS if task.of_paragraphs else DOCUMENTS]
        records = np.stack([digests[:, 0], digests[:, 1], ids])
        if task.of_paragraphs:
            records = records[:, _may_repeat(task.folder, task.group.first_range + index, path, digests)]
        parts.append(records)
    write_run(task.output, joined(iter(parts), 3))


def write_repeated(task: Repeated) -> None:
    """uint64[1, N]: the sorted numbers of the records whose digest an earlier record has."""
    upper, lower, ids = joined(read_interval(task.runs, task.interval), 3)
    order = np.lexsort((lower, upper))  # equal digests stay in document order
    upper, lower, ids = upper[order], lower[order], ids[order]
    again = (upper[1:] == upper[:-1]) & (lower[1:] == lower[:-1])
    write_array(task.output, np.sort(ids[1:][again])[None])


def write_flags(task: Flags) -> None:
    """uint8: one for each record of the group."""
    flags = np.zeros(task.group.size(), np.uint8)
    for value, files in enumerate(task.dropped, start=1):
        for part in read_interval(files, task.group.interval()):
            flags[part[0] - np.uint64(task.group.starts[0])] = value
    write_array(task.output, flags)


def _plan(ranges: Sequence[Path], group_records: int) -> npt.NDArray[np.int64]:
    """int64[4, ranges]: documents, paragraphs, the group of the documents, the group of the paragraphs."""
    counts = [[rows(path, name) for path in ranges] for name in (DOCUMENTS, PARAGRAPHS)]
    return np.array([*counts, *(cut_into_groups(sizes, group_records) for sizes in counts)], np.int64)


def _groups(plan: npt.NDArray[Any], ranges: Sequence[Path], records: str) -> list[Group]:
    row = (DOCUMENTS, PARAGRAPHS).index(records)
    starts = [0, *np.cumsum(plan[row]).tolist()]
    firsts = [*np.searchsorted(plan[row + 2], range(int(plan[row + 2].max(initial=-1)) + 1)).tolist(), len(ranges)]
    return [
        Group(number, first, tuple(ranges[first:end]), tuple(starts[first : end + 1]))
        for number, (first, end) in enumerate(pairwise(firsts))
    ]


def _repeated(groups: Sequence[Group], folder: Path, of_paragraphs: bool, run: Run) -> Files:
    """The records whose digest stood before, a file a bucket."""
    name = "paragraph" if of_paragraphs else "exact"
    runs, found = _files(folder / f"{name}-runs", len(groups)), _files(folder / name, len(groups))
    tasks = [Repeated(found.path(n), runs, bucket(n, found.length)) for n in range(found.length)]
    if _missing(tasks):
        _finish(run, write_digest_run, [DigestRun(runs.path(g.number), g, folder, of_paragraphs) for g in groups])
        _finish(run, write_repeated, tasks)
    shutil.rmtree(runs.folder)
    return found


def _near(groups: Sequence[Group], folder: Path, flags: Files, threshold: float, run: Run) -> Files:
    """The near duplicates: one file, with rows (dropped, kept)."""
    found = _files(folder / "near", 1)
    if not found.path(0).exists():
        candidates = tuple(_candidates(groups, folder, flags, band, run) for band in range(near.BANDS))
        similar = _files(folder / "near-similar", len(groups))
        known = candidates, folder / _RANGES, folder / _STARTS, threshold
        _finish(run, write_similar, [Similar(similar.path(g.number), g, *known) for g in groups])
        write_array(found.path(0), clusters(similar))
    for name in ("band-*", "near-*"):
        for path in folder.glob(name):
            shutil.rmtree(path)
    return found


def _candidates(groups: Sequence[Group], folder: Path, flags: Files, band: int, run: Run) -> Files:
    """The candidate pairs of one band. Its runs, 16 bytes a document, are deleted before those of the next."""
    runs = _files(folder / f"band-{band:02}-runs", len(groups))
    found = _files(folder / f"band-{band:02}-pairs", len(groups))
    tasks = [Candidates(found.path(n), runs, bucket(n, found.length)) for n in range(found.length)]
    if _missing(tasks):
        _finish(run, write_band_run, [BandRun(runs.path(g.number), g, band, flags.path(g.number)) for g in groups])
        _finish(run, write_candidates, tasks)
    shutil.rmtree(runs.folder)
    return found


def _write_flags(groups: Sequence[Group], folder: Path, dropped: tuple[Files, ...], run: Run) -> Files:
    flags = _files(folder, len(groups))
    _finish(run, write_flags, [Flags(flags.path(group.number), group, dropped) for group in groups])
    return flags


def _files(folder: Path, count: int) -> Files:
    folder.mkdir(exist_ok=True)
    return Files(folder, count)


def _missing(tasks: Iterable[Item]) -> list[Item]:
    return [task for task in tasks if not task.output.exists()]


def _finish(run: Run, function: Callable[[Item], None], tasks: Iterable[Item]) -> None:
    """Do the tasks whose output is not there."""
    for _ in run(function, _missing(tasks)):
        pass


def _may_repeat(folder: Path, range_index: int, path: Path, digests_P2: Records) -> npt.NDArray[np.bool_]:
    """bool[P]: paragraphs of kept documents that are long enough."""
    counts_D = StagedRange(path)["paragraphs_D"]
    kept_D = _range_flags(folder, "flags", range_index, DOCUMENTS, len(counts_D)) == KEPT
    chosen: npt.NDArray[np.bool_] = np.repeat(kept_D, counts_D) & (digests_P2 != paragraphs.NEVER_EQUAL).any(axis=1)
    return chosen


def _range_flags(folder: Path, name: str, range_index: int, records: str, count: int) -> npt.NDArray[np.uint8]:
    plan = read_array(folder / _PLAN)
    row = (DOCUMENTS, PARAGRAPHS).index(records)
    if int(plan[row, range_index]) != count:
        raise DataError(f"{folder}: range {range_index} had {plan[row, range_index]} records, now {count}; delete it")
    group = int(plan[row + 2, range_index])
    start = int(plan[row, int(np.searchsorted(plan[row + 2], group)) : range_index].sum())
    return np.array(read_array(folder / name / f"{group:05}.npy")[start : start + count], np.uint8)
