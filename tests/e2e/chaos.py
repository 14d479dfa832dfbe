"""Kills a run at chosen moments until all kills are used up, and compares what is left with an undisturbed run.

A moment is told by what a start does to the run's files, and a random delay after it. After each kill the same command
goes on at once: where torchrun was killed, its ranks are still ending then.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from e2e_commands import ROOT, environment, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RANKS, INTERVAL, VALIDATION, KEEP = 2, 5, 12, 2
SETTINGS = [f"checkpoint.interval_steps={INTERVAL}", f"checkpoint.keep_last={KEEP}"]
SETTINGS += [f"validation.interval_steps={VALIDATION}", "validation.max_rows=16"]
TARGETS = ("rank 0", "rank 1", "torchrun", "everything")
_MARK = "BERTMAE_TEST_CHAOS"
_LOOK_EVERY = 0.0005  # seconds: an fsync takes longer
_LONGEST = 300.0  # seconds to any moment or end, on a machine that does much else


class Kill(NamedTuple):
    """Who dies when."""

    target: str
    moment: str


@dataclass
class Start:
    """One start of the command, and what was seen of it. Times are seconds since 1970, as those of files."""

    run: Path
    last_step: int
    process: subprocess.Popen[bytes]
    output: Path
    mark: str
    began: float
    alone_since: float  # until then ranks of the start before may still write checkpoints and records
    pids: dict[int, str] = field(default_factory=dict)  # of its processes, once it has opened the metrics
    resumed_at: int | None = None  # the records that it kept then
    seconds_to_first_step: float | None = None
    kill: Kill | None = None
    found: str = ""  # how far the checkpoint under way had come at the kill
    steps: int = 0  # recorded at the kill or the end
    seconds_to_end: float = 0.0  # from the kill to the end of the last process
    account_began: float | None = None  # the beginning of the run, by goodput.json

    def has_new(self, pattern: str) -> bool:
        """Whether this start wrote such a file or folder of the run."""
        return any(_changed(path) > self.alone_since for path in self.run.glob(pattern))

    def look(self) -> None:
        """See whether it has gone on, and whether it has done a step."""
        if self.resumed_at is None:
            if self.has_new("tensorboard/*"):
                self.resumed_at, self.pids = records(self.run), processes(self.mark)
        elif self.seconds_to_first_step is None and records(self.run) > self.resumed_at:
            self.seconds_to_first_step = time.time() - self.began


class Moment(NamedTuple):
    """A time in the life of a start: when something holds, or up to so many seconds later."""

    is_now: Callable[[Start], bool]
    most_delay: float = 0.0


def _in_step_before(interval: int) -> Callable[[Start], bool]:
    return lambda start: start.resumed_at is not None and records(start.run) % interval == interval - 1


def _in_last(file: str) -> Callable[[Start], bool]:
    return lambda start: start.has_new(f"checkpoints/.step-{start.last_step:08d}.partial{file}")


def _latest_is_older(start: Start, last: bool = False) -> bool:
    newest = max(committed(start.run), default=None)
    if newest is None or _changed(newest) < start.alone_since or (last and newest.name != _name(start.last_step)):
        return False
    return latest(start.run) != newest.name


def _one_too_many(start: Start, last: bool = False) -> bool:
    right = not last or latest(start.run) == _name(start.last_step)
    return right and start.has_new("checkpoints/latest") and len(committed(start.run)) > KEEP


MOMENTS = {
    "ranks begin": Moment(lambda start: len(processes(start.mark)) == 1 + RANKS, 0.2),
    "imports, rendezvous": Moment(lambda start: len(processes(start.mark)) == 1 + RANKS, 5.0),
    "lock, plan": Moment(lambda start: _changed(start.run / ".lock") > start.began, 0.2),
    "engine, loading": Moment(lambda start: _changed(start.run / "config.yaml") > start.began, 4.0),
    "records are cut": Moment(lambda start: start.resumed_at is not None, 0.1),
    "steps": Moment(lambda start: start.seconds_to_first_step is not None, 3.0),
    "validation": Moment(_in_step_before(VALIDATION), 0.3),
    "snapshot": Moment(_in_step_before(INTERVAL), 0.3),
    "tensors are written": Moment(lambda start: start.has_new("checkpoints/.step-*.partial")),
    "fsync": Moment(lambda start: start.has_new("checkpoints/.step-*.partial/state.json")),
    "rename": Moment(lambda start: start.has_new("checkpoints/.step-*.partial/manifest.json")),
    "latest": Moment(_latest_is_older),
    "pruning": Moment(_one_too_many),
}
# A run has these once; what was half done then, no later checkpoint puts right.
LAST_MOMENTS = {
    "last fsync": Moment(_in_last("/state.json")),
    "last rename": Moment(_in_last("/manifest.json")),
    "last latest": Moment(lambda start: _latest_is_older(start, last=True)),
    "last pruning": Moment(lambda start: _one_too_many(start, last=True)),
}


def run_undisturbed(run: Path, words: list[object], last_step: int) -> Start:
    """The reference: one start from the first step to the last."""
    start = _begin(run, words, last_step)
    _finish(start)
    return start


def run_killed(
    run: Path, words: list[object], last_step: int, kills: Sequence[Kill], rng: random.Random
) -> list[Start]:
    """Start the command, kill, start again: until the kills are used up or the run has come to its end before one.

    All starts in order; the last one has ended by itself. Raises AssertionError where one failed by itself.
    """
    starts: list[Start] = []
    for kill in kills:
        start = _begin(run, words, last_step)
        starts.append(start)
        _wait_for_orphans(starts)
        if not _wait_for((MOMENTS | LAST_MOMENTS)[kill.moment], start, rng):
            break
        _kill(start, kill)
    else:
        starts.append(_begin(run, words, last_step))
        _wait_for_orphans(starts)
    _finish(starts[-1])
    return starts


def steps_lost(starts: list[Start]) -> list[int]:
    """For each killed start the steps that were done again because of it."""
    lost = []
    for number, start in enumerate(starts[:-1]):
        later = [start.resumed_at for start in starts[number + 1 :] if start.resumed_at is not None]
        came_to_steps = start.resumed_at is not None and later
        lost.append(max(0, start.steps - later[0]) if came_to_steps else 0)
    return lost


def differences(starts: list[Start], undisturbed: Path) -> list[str]:
    """A sentence for everything that is not as in the undisturbed run."""
    run, last_step = starts[-1].run, starts[-1].last_step
    every_step = list(range(1, last_step + 1))
    found = []
    if [record["step"] for record in metrics(run)] != every_step:
        found.append("metrics.jsonl does not hold each step once")
    for record, expected in zip(curve(run), curve(undisturbed), strict=False):
        if record != expected:
            names = [name for name in record | expected if record.get(name) != expected.get(name)]
            found.append(f"step {record['step']} has another {', '.join(names)}")
    if events(run) != events(undisturbed) or [step for step, _ in events(run)] != every_step:
        found.append("TensorBoard does not hold each step once with the same loss")
    for name in ("model", "exp_avg", "exp_avg_sq"):
        file = f"checkpoints/{_name(last_step)}/{name}.safetensors"
        if (run / file).read_bytes() != (undisturbed / file).read_bytes():
            found.append(f"{name} is another one")
    return found + _leftovers(run, undisturbed) + _account(starts)


def curve(run: Path) -> list[dict]:
    """The records without what the clock says, and without what a start needs of memory."""
    timed = ("second", "goodput", "starts", "memory", "mfu", "incident", "slowest")
    return [{key: record[key] for key in record if not any(word in key for word in timed)} for record in metrics(run)]


def events(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of TensorBoard's curve."""
    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars("loss/total")]


def records(run: Path) -> int:
    """Whole lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def committed(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob("step-*"))


def latest(run: Path) -> str:
    file = run / "checkpoints" / "latest"
    return file.read_text().strip() if file.exists() else ""


def processes(mark: str) -> dict[int, str]:
    """The processes of a start by pid: "rank 0", "rank 1", "torchrun"."""
    found = {}
    for folder in Path("/proc").iterdir():
        try:
            variables = (folder / "environ").read_bytes().split(b"\0") if folder.name.isdecimal() else []
            if f"{_MARK}={mark}".encode() in variables and b"\0pretrain\0" in (folder / "cmdline").read_bytes():
                ranks = [v.removeprefix(b"RANK=").decode() for v in variables if v.startswith(b"RANK=")]
                found[int(folder.name)] = f"rank {ranks[0]}" if ranks else "torchrun"
        except OSError:  # it ended meanwhile
            continue
    return found


def _begin(run: Path, words: list[object], last_step: int) -> Start:
    mark = uuid.uuid4().hex
    output = run.with_name(f"{run.name}-{mark}.log")
    command = [sys.executable, "-m", "train", "launch", "--nproc-per-node", RANKS, "pretrain", *words]
    command += [f"run.directory={run}", f"run.steps={last_step}"]
    began = time.time()
    with output.open("wb") as file:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=ROOT,
            env=environment() | {_MARK: mark},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Start(run, last_step, process, output, mark, began, alone_since=began)


def _wait_for(moment: Moment, start: Start, rng: random.Random) -> bool:
    """Whether the moment came before the run's end."""
    delay = rng.uniform(0.0, moment.most_delay)
    while not moment.is_now(start):
        if not _is_alive(start):
            return False
        time.sleep(_LOOK_EVERY)
    until = time.time() + delay
    while time.time() < until and _is_alive(start):
        time.sleep(min(0.01, delay))
    return start.process.poll() is None


def _is_alive(start: Start) -> bool:
    start.look()
    assert time.time() < start.began + _LONGEST, f"the moment does not come: {start.output.read_text()[-3000:]}"
    return start.process.poll() is None


def _kill(start: Start, kill: Kill) -> None:
    """kill -9, and for a rank the wait for torchrun, which ends the others."""
    start.kill = kill
    for pid, name in (start.pids or processes(start.mark)).items():  # the search takes longer than a rename
        if kill.target in (name, "everything"):
            with suppress(ProcessLookupError):  # it ended by itself
                os.kill(pid, signal.SIGKILL)
    start.found, start.steps = _checkpoint_under_way(start), records(start.run)
    killed = time.time()
    if kill.target.startswith("rank"):
        assert start.process.wait(timeout=_LONGEST) in (0, 1), start.output.read_text()[-3000:]
        start.seconds_to_end = time.time() - killed
    start.process.wait(timeout=_LONGEST)
    start.account_began = _account_began(start.run)


def _wait_for_orphans(starts: list[Start]) -> None:
    """Ranks whose torchrun was killed end by themselves; the new start is under way."""
    if len(starts) < 2:
        return
    before, now = starts[-2:]
    while processes(before.mark):
        assert time.time() < now.began + _LONGEST, f"orphans live on: {before.output.read_text()[-3000:]}"
        now.alone_since = time.time()
        before.seconds_to_end = now.alone_since - now.began
        time.sleep(0.05)


def _finish(start: Start) -> None:
    while _is_alive(start):
        time.sleep(0.01)
    output = start.output.read_text()
    assert start.process.returncode == 0, output[-3000:]
    start.steps, start.account_began = records(start.run), _account_began(start.run)


def _checkpoint_under_way(start: Start) -> str:
    """How far the newest checkpoint of this start is."""
    for file, words in (("manifest.json", "not renamed"), ("state.json", "in fsync"), ("", "without all tensors")):
        if start.has_new(f"checkpoints/.step-*.partial/{file}"):
            return words
    if _latest_is_older(start):
        return "not in latest"
    if any(not (path / "manifest.json").exists() for path in committed(start.run)):
        return "half pruned"
    return "not pruned" if _one_too_many(start) else "none"


def _leftovers(run: Path, undisturbed: Path) -> list[str]:
    """Files and folders that the undisturbed run has not; the names of event files are told by the clock."""
    names, expected = (
        {str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard/" not in str(path)}
        for folder in (run, undisturbed)
    )
    found = [f"{name} is left" for name in sorted(names - expected)]
    found += [f"{name} is missing" for name in sorted(expected - names)]
    return found if latest(run) == latest(undisturbed) else [*found, f"latest is {latest(run)}"]


def _account(starts: list[Start]) -> list[str]:
    """The parts of goodput.json together are the time since the run began: its beginning does not move by a second."""
    told = [start.account_began for start in starts if start.account_began is not None]
    first = next(start for start in starts if start.account_began is not None)
    found = []
    if not starts[0].began - 1 <= told[0] <= first.began + _LONGEST:
        found.append(f"goodput.json begins {told[0] - starts[0].began:.1f} s after the first start")
    if max(told) - min(told) > 1:
        found.append(f"the beginning of goodput.json moved by {max(told) - min(told):.1f} s")
    return found


def _account_began(run: Path) -> float | None:
    file = run / "goodput.json"
    if not file.exists():
        return None
    account = json.loads(file.read_bytes())
    return account["written"] - sum(account["seconds"].values())


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _name(step: int) -> str:
    return f"step-{step:08d}"
