"""What happened to a run beside its steps: lines of RUN/incidents.jsonl, in words of its records and of TensorBoard.

Kinds: resume, restart, checkpoint fallback, stop, hang, slow rank, damaged rows, plateau, divergence; those that have
the rows of a batch (loss spike, non-finite update) are in train/monitor/incidents.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from train.errors import UserError
from train.monitor.samples import escaped

FILE = "incidents.jsonl"
_MOST_SHOWN = 50  # on TensorBoard's page
_STARTS = ("resume", "restart")
_WITHOUT_RECORD = ("hang", "checkpoint fallback")  # written where no record follows: by a dying process, before a start


def append(run: Path, step: int, kind: str, words: str) -> None:
    """One more line, from any process or thread. A disk that refuses costs it: who calls logs the words, too."""
    record = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": step, "kind": kind, "words": words}
    with suppress(OSError), (run / FILE).open("ab") as file:
        torn = is_torn(run / FILE)
        file.write(b"\n" * torn + (json.dumps(record, ensure_ascii=False) + "\n").encode())


def is_torn(path: Path) -> bool:
    """Whether a killed process left half a line."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 1))
        return file.read(1) not in (b"", b"\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The records of an incidents file, torn lines left out. Raises UserError where it cannot be read."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    return [record for line in lines if (record := _parse(line)) is not None]


def of_run(run: Path) -> list[dict[str, Any]]:
    """The same of a run, to which nothing may have happened. Raises UserError where they cannot be read."""
    return read(run / FILE) if (run / FILE).exists() else []


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and {"step", "kind"} <= record.keys() else None


def sentence(record: Mapping[str, Any]) -> str:
    """One incident as people read it, without its step and time."""
    if "words" in record:
        return f"{record['kind']}: {record['words']}"
    if "expected" in record:
        return f"{record['kind']}: {record['loss']:.4f} where {record['expected']:.4f} was expected"
    return str(record["kind"])


class Unread:
    """What was added to a run's incidents since the last look, and at first what came between two starts."""

    def __init__(self, run: Path) -> None:
        """What is there already counts as seen, but for what no start could put in a record."""
        self._path = run / FILE
        self._size = 0
        self._before = _between_starts(self._new())

    def look(self) -> list[str]:
        """The sentences of the new lines; where the file cannot be read there is none."""
        before, self._before = self._before, []
        return [sentence(record) for record in [*before, *self._new()]]

    def _new(self) -> list[dict[str, Any]]:
        if self._bytes() <= self._size:
            return []
        with suppress(OSError), self._path.open("rb") as file:
            file.seek(self._size)
            new = file.read()
            self._size += len(new)
            return [record for line in new.splitlines() if (record := _parse(line)) is not None]
        return []

    def _bytes(self) -> int:
        try:
            return self._path.stat().st_size
        except OSError:
            return 0


def _between_starts(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What came after the last start and without a record."""
    kinds = [record["kind"] for record in records]
    last = max((i for i, kind in enumerate(kinds) if kind in _STARTS), default=-1)
    return [record for record in records[last + 1 :] if record["kind"] in _WITHOUT_RECORD]


def page(run: Path) -> str:
    """The newest incidents as Markdown, the last one first; empty where there is none."""
    found = of_run(run)[-_MOST_SHOWN:]
    return "\n".join(f"- **step {each['step']}**, {when(each)}: {escaped(sentence(each))}" for each in reversed(found))


def when(record: Mapping[str, Any]) -> str:
    """The time of an incident as people read it; empty where it has none."""
    return str(record.get("time", "")).replace("T", " ").replace("+00:00", " UTC")
