"""Staged ranges: what was read, cleaned and tokenized of the input so far, a file for each range, whole or not there.

A range is up to two spans' worth of records of one span. Its file holds arrays (safetensors) and notes; its name says
which part of which span it is, and whether it is the last one. Legend as in arrays.py, of a whole range.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from data_pipeline.arrays import Arrays, Encoding, unit_encoder
from data_pipeline.durable import write_whole
from data_pipeline.notes import Notes
from data_pipeline.sources import Reading, Unit
from data_pipeline.spans import Span, span_units

_NAME = re.compile(r"(\d{6,})-(\d{6,})(-end)?\.safetensors")
_DTYPES = {"U8": "u1", "BOOL": "?", "U16": "<u2", "U32": "<u4", "U64": "<u8"}
_FEW_SPANS = 2  # to a worker: with fewer, workers share the spans that cannot be cut


class Part(NamedTuple):
    """The place of a staged range in the input."""

    span: int
    number: int  # of the range in its span


@dataclass(frozen=True, slots=True)
class StageTask:
    """Ranges of one span for one worker: those that are missing and whose number is `share` modulo `shares`."""

    folder: Path
    span: Span
    number: int  # of the span
    share: int
    shares: int
    done: frozenset[int]  # ranges that lie there already
    range_bytes: int  # of records; a range ends with the unit that reaches it
    reading: Reading
    encoding: Encoding


class Amount(NamedTuple):
    """How much was read."""

    bytes: int  # of the input
    documents: int
    tokens: int


class StagedRange:
    """A staged range on the disk, its arrays mapped: only what is touched is read."""

    def __init__(self, path: Path) -> None:
        """Reads the head of the file, which `stage` wrote."""
        self.path = path
        content = np.memmap(path, np.uint8, "r")
        size = int.from_bytes(bytes(content[:8]), "little")
        self._head: dict[str, Any] = json.loads(bytes(content[8 : 8 + size]))
        self._content = content[8 + size :]

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        entry = self._head[name]
        start, stop = entry["data_offsets"]
        return np.frombuffer(self._content[start:stop], _DTYPES[entry["dtype"]]).reshape(entry["shape"])

    def __contains__(self, name: str) -> bool:
        return name in self._head

    @property
    def notes(self) -> Notes:
        """On the records of the range that gave no document."""
        return Notes.from_json(self._described["notes"])

    @property
    def lines(self) -> int:
        """Lines of the input in the range, where it is a stretch of a file."""
        return int(self._described["lines"])

    @property
    def amount(self) -> Amount:
        """How much the range holds."""
        return Amount(*self._described["amount"])

    @cached_property
    def _described(self) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self._head["__metadata__"]["range"])
        return described


def stage(task: StageTask) -> None:
    """Write the ranges of a task that are missing. Raises UserError when the disk refuses, what reading raises."""
    of_this_process = unit_encoder(task.encoding)
    gathered, number, size = _Gathered(of_this_process.nothing()), 0, 0
    for input_number, unit in span_units(task.span, task.reading):
        if _is_mine(task, number):
            gathered.add(input_number, unit, *of_this_process.encode(unit))
        size += unit.bytes
        if size >= task.range_bytes:
            _write(task, number, gathered, last=False)
            gathered, number, size = _Gathered(of_this_process.nothing()), number + 1, 0
    _write(task, number, gathered, last=True)


def missing_tasks(
    folder: Path, spans: Sequence[Span], range_bytes: int, workers: int, reading: Reading, encoding: Encoding
) -> Iterator[StageTask]:
    """The tasks that make the staged ranges in `folder` complete; none when they are."""
    present, ends = _present(folder)
    left = [number for number in range(len(spans)) if len(present[number]) != ends.get(number, sys.maxsize) + 1]
    few = len(left) < _FEW_SPANS * workers
    for number in left:
        pieces = -(-spans[number].bytes // range_bytes)
        shares = max(1, min(workers, pieces)) if few and spans[number].stretch is None else 1
        for share in range(shares):
            yield StageTask(
                folder, spans[number], number, share, shares, frozenset(present[number]), range_bytes, reading, encoding
            )


def staged_paths(folder: Path) -> list[Path]:
    """The staged ranges in the order of the input."""
    found = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return [path for _, path in sorted((Part(int(match[1]), int(match[2])), path) for match, path in found if match)]


def new_amounts(folder: Path, seen: set[str]) -> Iterator[Amount]:
    """The amounts of the staged ranges that are not among `seen`, which from now on they are."""
    for path in staged_paths(folder):
        if path.name not in seen:
            seen.add(path.name)
            yield StagedRange(path).amount


def part_of(path: Path) -> Part:
    """Which range the file of a name is."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise ValueError(f"{path} is no staged range")
    return Part(int(match[1]), int(match[2]))


class _Gathered:
    """The arrays and notes of the units of a range so far."""

    def __init__(self, nothing: Arrays) -> None:
        self._arrays = {name: [array] for name, array in nothing.items()}
        self._arrays["input_D"] = [np.empty(0, np.uint32)]
        self._notes = Notes()
        self._bytes = self._lines = 0

    def add(self, input_number: int, unit: Unit, arrays: Arrays, notes: Notes) -> None:
        """Append what a unit gave."""
        for name, array in arrays.items():
            self._arrays[name].append(array)
        self._arrays["input_D"].append(np.full(len(arrays["digest_D2"]), input_number, np.uint32))
        self._notes.update(notes)
        self._bytes += unit.read
        if unit.records:
            self._lines = unit.records[-1].line

    def content(self) -> bytes:
        """The file of the range."""
        arrays = {
            name: np.ascontiguousarray(np.concatenate(found, axis=1 if name == "bands_BD" else 0))
            for name, found in self._arrays.items()
        }
        amount = Amount(self._bytes, len(arrays["digest_D2"]), arrays["ids_T"].size)
        described = {"notes": self._notes.as_json(), "lines": self._lines, "amount": amount}
        content: bytes = save(arrays, {"range": json.dumps(described)})
        return content


def _is_mine(task: StageTask, number: int) -> bool:
    return number % task.shares == task.share and number not in task.done


def _write(task: StageTask, number: int, gathered: _Gathered, last: bool) -> None:
    if _is_mine(task, number):
        name = f"{task.number:06d}-{number:06d}{'-end' if last else ''}.safetensors"
        write_whole(task.folder / name, gathered.content())


def _present(folder: Path) -> tuple[defaultdict[int, set[int]], dict[int, int]]:
    """By span: the numbers of the ranges that are there, and the number of the last one where that is known."""
    present: defaultdict[int, set[int]] = defaultdict(set)
    ends: dict[int, int] = {}
    for match in filter(None, (_NAME.fullmatch(path.name) for path in folder.iterdir())):
        span, number = int(match[1]), int(match[2])
        present[span].add(number)
        if match[3]:
            ends[span] = number
    return present, ends
