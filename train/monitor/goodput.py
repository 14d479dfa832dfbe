"""RUN/goodput.json: where the wall time of a run went, over all its starts.

Every moment since the run's first start belongs to exactly one part:

    startup     from the start of a process to its first step
    steps       in steps that were needed; waiting for slower ranks is in it
    data_wait   rank 0 had no batch to go on with
    checkpoint  no step was done because of a checkpoint
    validation  no step was done because of a validation
    lost        in steps that were done again, because a start went on from an earlier one: their time in metrics.jsonl
    idle        no process trained; what a killed one did after its last record is in it, for nobody wrote it down

goodput = steps / sum of all parts. A part's time is rank 0's, in seconds, by clocks that nobody can set. Between two
starts that is the time since the machine was booted; after a reboot, or on another machine, it is the time of day.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_whole
from train.errors import UserError
from train.monitor.logs import log
from train.monitor.progress import duration

_BOOT = Path("/proc/sys/kernel/random/boot_id")
PARTS = ("startup", "steps", "data_wait", "checkpoint", "validation", "lost", "idle")


@dataclass(frozen=True, slots=True)
class Moment:
    """When an account was written, so that the next start can tell how long ago that is."""

    written: float  # seconds since 1970, by a clock that somebody may set
    boot: str  # the boot of the machine that wrote it ("": not known)
    since_boot: float  # seconds, sleep included

    @classmethod
    def now(cls) -> Moment:
        boot = _BOOT.read_text().strip() if _BOOT.exists() else ""
        return cls(time.time(), boot, time.clock_gettime(time.CLOCK_BOOTTIME))

    def seconds_ago(self) -> float:
        """At least 0, whatever the clocks say."""
        now = Moment.now()
        same_boot = self.boot and self.boot == now.boot
        return max(0.0, now.since_boot - self.since_boot if same_boot else now.written - self.written)


@dataclass(slots=True)
class Goodput:
    """The account of one start of a run, on top of those before it."""

    path: Path
    step: int  # the last one that the account knows the time of
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    starts: int = 1
    _written: Moment | None = None  # by the start before
    _trained_on: float = 0.0  # seconds from then on, in steps that the start before did not account for
    _part: str = "startup"
    _since: float = field(default_factory=time.monotonic)

    @classmethod
    def open(cls, path: Path, resume_step: int, cut: Sequence[Mapping[str, Any]]) -> Goodput:
        """Go on from the file of the starts before; `cut` are the records beyond the step that the run goes on from."""
        known = max([resume_step, *(int(record["step"]) for record in cut)])
        before = _read(path)
        if before is None or before["step"] > known:  # of a run whose metrics and checkpoints were deleted
            before = {"step": resume_step, "seconds": {}, "starts": 0, "written": None}
        account = cls(path, resume_step, dict.fromkeys(PARTS, 0.0) | before["seconds"], before["starts"] + 1)
        if account.starts > 1:
            account._written = before["written"]
        for record in cut:
            account._lose(record, known=record["step"] <= before["step"])
        return account

    def begin(self, started: float) -> None:
        """This process started at `started` of time.monotonic(); before that nobody trained."""
        now = time.monotonic()
        if self._written is not None:
            idle = self._written.seconds_ago() - self._trained_on - (now - started)
            self.seconds["idle"] += max(0.0, idle)
            # Where a run goes back within its process, the account has the time until then.
            started = min(now, started - min(0.0, idle))
        self._since = started

    def enter(self, part: str) -> None:
        """What follows is time of another part."""
        now = time.monotonic()
        self.seconds[self._part] += now - self._since
        self._part, self._since = part, now

    def waited(self, seconds: float) -> None:
        """So much of the step was a wait for data."""
        self.seconds["steps"] -= seconds
        self.seconds["data_wait"] += seconds

    def so_far(self) -> dict[str, float]:
        """`goodput`, `starts`, and the seconds of each part since the run's first start as PART_seconds_total."""
        self.enter(self._part)
        wall = sum(self.seconds.values())
        parts = {f"{part}_seconds_total": round(seconds, 3) for part, seconds in self.seconds.items()}
        return {"goodput": round(self.seconds["steps"] / wall, 5) if wall else 0.0, "starts": self.starts, **parts}

    def write(self) -> None:
        """Replace the file whole. A disk that refuses costs a warning: a run does not end for its statistics."""
        self.enter(self._part)
        account = {"step": self.step, "starts": self.starts, **asdict(Moment.now()), "seconds": self.seconds}
        try:
            write_whole(self.path, (json.dumps(account, indent=2) + "\n").encode())
        except UserError as error:
            log.warning("%s", error)

    def sentence(self) -> str:
        """The account as people read it."""
        share = self.so_far()["goodput"]
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        parts = ", ".join(f"{part.replace('_', ' ')} {duration(seconds)}" for part, seconds in self.seconds.items())
        return f"Goodput {share:.1%} of {duration(sum(self.seconds.values()))} since the first of {starts}: {parts}."

    def _lose(self, record: Mapping[str, Any], known: bool) -> None:
        """The step of this record will be done again; `known` where the account has its time among the steps."""
        seconds, waited = record.get("step_seconds") or 0.0, record.get("data_wait_seconds") or 0.0
        self.seconds["lost"] += seconds
        if known:
            self.seconds["steps"] -= seconds - waited
            self.seconds["data_wait"] -= waited
        elif self._written is not None:
            self._trained_on += seconds


def _read(path: Path) -> dict[str, Any] | None:
    """What a start before wrote; None where there is nothing, or nothing that can be read."""
    try:
        account = json.loads(path.read_bytes())
        numbers = {part: float(account["seconds"][part]) for part in PARTS}
        step, starts = int(account["step"]), int(account["starts"])
        boot, since_boot = str(account.get("boot", "")), float(account.get("since_boot", 0.0))  # older files: no such
        written = Moment(float(account["written"]), boot, since_boot)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        log.warning("%s cannot be read: goodput counts from this start on", path)
        return None
    return {"step": step, "starts": starts, "written": written, "seconds": numbers}
