"""The way back from a loss spike: to an earlier checkpoint, and past the batches of the spike.

A state is good when the loss of the step after it was measured and was no spike. So where step s is the first one of a
spike, the newest good state is that of step s - 2 at most, and what may have done the damage are the batches from that
of step s - 1, whose update step s measures, to that of the last spiking step. RUN/skips.json is the decision:

    {"skipped": [[57, 60], ...]    numbers of batches that no step reads; in the order of the data, from 0 on
     "rewinds": [{"time", "spike", "last", "loss", "checkpoint"}, ...]
     "going_back_to": 40 or null}  checkpoints after this step are still to be removed

It is written whole before anything is thrown away, and every start of the run does what it says.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_whole, writing
from train.checkpoint_folder import MANIFEST, STATE, committed, named, read_json, verify
from train.errors import UserError
from train.monitor.logs import log
from train.monitor.spikes import Spike

FILE = "skips.json"
Range = tuple[int, int]  # of numbers of batches, the last one included


class GoBack(Exception):  # noqa: N818 - no error: the loop ends, and the run goes on from an earlier checkpoint
    """The run goes back, as RUN/skips.json says."""


@dataclass(frozen=True, slots=True)
class Decisions:
    """What RUN/skips.json holds."""

    skipped: tuple[Range, ...] = ()  # rising, with batches in between
    rewinds: tuple[dict[str, Any], ...] = ()
    going_back_to: int | None = None

    @classmethod
    def read(cls, run: Path) -> Decisions:
        """No decisions where there is no file. Raises UserError for one that cannot be read."""
        path = run / FILE
        if not path.exists():
            return cls()
        try:
            content = read_json(path)
            skipped = tuple((int(first), int(last)) for first, last in content["skipped"])
            back = content["going_back_to"]
            return cls(skipped, tuple(content["rewinds"]), None if back is None else int(back))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: cannot be read ({error}); bring it back, or remove it to read the rows that it leaves out"
            ) from error

    def write(self, run: Path) -> None:
        """Raises UserError where the disk refuses; then the file is as it was."""
        content = {"skipped": self.skipped, "rewinds": self.rewinds, "going_back_to": self.going_back_to}
        write_whole(run / FILE, (json.dumps(content, indent=1) + "\n").encode())


def decide(run: Path, spikes: Sequence[Spike], limit: int) -> int | None:
    """The step of the checkpoint to go back to, once it is on the disk that the run does; None where it goes on."""
    before, first, last = Decisions.read(run), spikes[0].step, spikes[-1].step
    if len(before.rewinds) >= limit:
        log.warning("step %d: a spike, and the run went back incidents.max_rewinds %d times: it goes on", first, limit)
        return None
    good = _newest_good(run / "checkpoints", first)
    if good is None:
        log.warning("step %d: a spike, and no checkpoint of step %d or before is left: it goes on", first, first - 2)
        return None
    rewind = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "spike": first, "last": last}
    rewind |= {"loss": spikes[0].loss, "checkpoint": good}
    batches = [batch_of(step, before.skipped) for step in range(first - 1, last + 1)]
    decisions = Decisions(with_batches(before.skipped, batches), (*before.rewinds, rewind), good)
    try:
        decisions.write(run)
    except UserError as error:
        log.warning("step %d: a spike, and the way back cannot be written down (%s): the run goes on", first, error)
        return None
    return good


def carry_out(run: Path) -> None:
    """Remove checkpoints and exports after the point of return, if that is still to be done. Raises UserError."""
    decisions = Decisions.read(run)
    if decisions.going_back_to is None:
        return
    _drop_after(run, decisions.going_back_to)
    replace(decisions, going_back_to=None).write(run)


def forget(run: Path) -> None:
    """Of a run that begins: decisions of a deleted one are not its own. Raises UserError."""
    with writing(run / FILE):
        (run / FILE).unlink(missing_ok=True)


def last_applied(folder: Path) -> str:
    """Words on the newest whole checkpoint of a step whose update was applied, and how a run goes on from there."""
    for path in sorted(committed(folder), key=_step, reverse=True):
        if verify(path) is None and not read_json(path / STATE)["skipped_in_a_row"]:
            return f"the last good checkpoint is {path} (step {_step(path)}): remove those after it to go on from there"
    return f"{folder} has no good checkpoint any more: give another run.directory"


def batch_of(step: int, skipped: Iterable[Range]) -> int:
    """The number of the batch that optimizer step `step` (the first one is 1) reads."""
    number = step - 1
    for first, last in skipped:
        if number >= first:
            number += last - first + 1
    return number


def with_batches(skipped: Iterable[Range], batches: Iterable[int]) -> tuple[Range, ...]:
    """The ranges with more batches."""
    numbers = sorted({*batches, *(number for first, last in skipped for number in range(first, last + 1))})
    ranges: list[Range] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number - 1:
            ranges[-1] = ranges[-1][0], number
        else:
            ranges.append((number, number))
    return tuple(ranges)


def jumps(run: Path) -> list[tuple[int, int]]:
    """(completed steps, batches to jump over before the next one), as the run's decisions have it. Raises UserError."""
    found, before = list[tuple[int, int]](), 0
    for first, last in Decisions.read(run).skipped:
        found.append((first - before, last - first + 1))
        before += last - first + 1
    return found


def _newest_good(folder: Path, spike: int) -> int | None:
    for path in sorted(committed(folder), key=_step, reverse=True):
        if _step(path) <= spike - 2 and verify(path) is None:
            return _step(path)
    return None


def _drop_after(run: Path, step: int) -> None:
    """The manifest goes first, and `latest` before it: what is half removed is never taken for a checkpoint."""
    folder = run / "checkpoints"
    later, exports = ([p for p in committed(place) if _step(p) > step] for place in (folder, run / "exports"))
    write_whole(folder / "latest", f"step-{step:08d}\n".encode())
    with writing(folder):
        if named(folder, "best") in {path.name for path in later}:
            (folder / "best").unlink()  # the next checkpoint names the best of those that are left
        for path in sorted(later, key=_step, reverse=True):
            (path / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(path)
        for path in exports:
            shutil.rmtree(path)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))
