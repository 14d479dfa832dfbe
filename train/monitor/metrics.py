"""RUN/metrics.jsonl: one JSON object a step, appended; a resumed run leaves no step twice."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from train.errors import UserError
from train.monitor.growing import GrowingFile

_READ_BYTES = 1 << 16


class MetricsFile:
    """Appends records. Opening it for a run that goes on cuts off what lies beyond the step it goes on from; `cut` are
    the records of those steps, which will be done again. On a full disk records wait in memory (growing.py)."""

    def __init__(self, path: Path, resume_step: int) -> None:
        self.cut: list[dict[str, Any]] = []
        try:
            if path.exists():
                end, self.cut = _split(path, resume_step)
                os.truncate(path, end)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror})") from error
        self._file = GrowingFile(path)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one line. JSON knows no NaN and no infinity, and strict readers refuse them: they become null."""
        finite = {name: value if _finite(value) else None for name, value in record.items()}
        self._file.append((json.dumps(finite, allow_nan=False) + "\n").encode())

    def sync(self) -> None:
        """Everything written so far survives a power cut: before a checkpoint that counts on it."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def last_step(path: Path) -> int:
    """The last step that a metrics file speaks of, 0 where there is none."""
    steps = [record["step"] for record in read_metrics(path)]
    return int(max(steps, default=0))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of a metrics file; a torn last line, as a killed run may leave it, is left out.

    Raises UserError where it cannot be read.
    """
    return list(each_record(path))


def each_record(path: Path) -> Iterator[dict[str, Any]]:
    """The same one after the other: those of a million steps together would take gigabytes."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            for line in file:
                if (record := _parse(line)) is not None:
                    yield record
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def newest_first(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a metrics file from the last one back, read as far as they are asked for; none where it is not
    readable: who asks wants to tell of a run, and not to go on from it."""
    try:
        with path.open("rb") as file:
            for line in _lines_from_end(file):
                if (record := _parse(line)) is not None:
                    yield record
    except OSError:
        return


def _lines_from_end(file: IO[bytes]) -> Iterator[bytes]:
    end, rest = file.seek(0, os.SEEK_END), b""
    while end:
        begin = max(0, end - _READ_BYTES)
        file.seek(begin)
        first, *lines = (file.read(end - begin) + rest).splitlines(keepends=True)
        yield from reversed(lines)
        end, rest = begin, first
    yield rest


def _finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _split(path: Path, step: int) -> tuple[int, list[dict[str, Any]]]:
    """Bytes up to the first line that is torn or lies beyond `step`, and the records beyond `step`."""
    end, cut, beyond = 0, [], False
    with path.open("rb") as file:
        for line in file:
            record = _parse(line)
            beyond = beyond or record is None or record["step"] > step
            if not beyond:
                end += len(line)
            elif record is not None and record["step"] > step:
                cut.append(record)
    return end, cut


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = line.endswith(b"\n") and isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if whole else None
