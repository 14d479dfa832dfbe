"""Runs that hang, under torchrun with two gloo ranks: they end, say who is behind, are started again and go on.

One command is made to hang two times: in the data of rank 1, and with rank 0 stopped. Each time torchrun starts it
again.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from e2e_commands import ROOT, command, environment, metrics

STEPS = 40
LIMIT = 6.0  # seconds without progress
SETTINGS = [f"run.steps={STEPS}", "checkpoint.interval_steps=4", f"watchdog.minutes={LIMIT / 60}"]
SETTINGS += [f"validation.interval_steps={STEPS}", "validation.max_rows=16"]
MOST_SECONDS = 12.0  # beyond the limit, until the processes are gone
STOPPED_AT = {0: 30}  # rank: step
HANGS = 1 + len(STOPPED_AT)


class Disturbed(NamedTuple):
    """A run that hung, its output, and for each stopped rank the seconds until its process was gone."""

    run: Path
    code: int
    output: str
    seconds: list[float]


def torchrun(output: Path, restarts: int, *words: object) -> subprocess.Popen:
    """torchrun itself, as users may call it, with ranks that hang as `words` begin to say."""
    options = ["--standalone", "--nproc-per-node", 2, "--max-restarts", restarts]
    script = [*options, Path(__file__).with_name("hanging_worker.py"), *words]
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    with output.open("wb") as file:
        torchrun = [sys.executable, "-m", "torch.distributed.run", *map(str, script)]
        return subprocess.Popen(torchrun, cwd=ROOT, env=variables, stdout=file, stderr=file)


def worker(run: Path, rank: int) -> int:
    """The process of a rank of this run."""
    found = subprocess.run(["pgrep", "-f", f"pretrain.*run.directory={run}"], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} among {found.stdout.split()}")


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def recorded(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def stop_rank(run: Path, rank: int, process: subprocess.Popen) -> float:
    """Stop a rank once the run is at its step; the seconds until its process is gone."""
    wait_for(lambda: recorded(run) >= STOPPED_AT[rank], process)
    pid, began = worker(run, rank), time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), process)
    return time.monotonic() - began


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = command("train", "launch", "--nproc-per-node", 2, "pretrain", *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def disturbed(tiny, tmp_path_factory) -> Iterator[Disturbed]:
    folder = tmp_path_factory.mktemp("hanging")
    run, output, plan = folder / "run", folder / "output.txt", ["1:data:10", "pretrain"]
    process = torchrun(output, HANGS, folder, *plan, *tiny, *SETTINGS, f"run.directory={run}")
    try:
        seconds = [stop_rank(run, rank, process) for rank in STOPPED_AT]
        code = process.wait(timeout=240)
    finally:
        process.terminate()
    return Disturbed(run, code, output.read_text(), seconds)


def test_a_run_that_hangs_again_and_again_goes_on_by_itself(disturbed, undisturbed):
    """Reference: the undisturbed run, bit for bit."""
    assert disturbed.code == 0, disturbed.output
    names = ("step", "loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")
    curves = [[[record[name] for name in names] for record in metrics(run)] for run in (disturbed.run, undisturbed)]
    assert curves[0] == curves[1] and len(curves[0]) == STEPS
    weights = Path("checkpoints") / f"step-{STEPS:08d}" / "model.safetensors"
    assert (disturbed.run / weights).read_bytes() == (undisturbed / weights).read_bytes()
    starts = re.findall(r"Start (\d) of this command: a worker had failed", disturbed.output)
    assert starts == [str(start) for start in range(2, HANGS + 2)]


def test_the_rank_that_is_behind_is_named_and_in_what_it_is(disturbed):
    """Reference: what was done to it; one line each time, on the terminal and in both logs."""
    lines = re.findall(r"^bertmae: (.*)", disturbed.output, re.M)
    host = r"\(\S+\)"
    expected = [
        rf"rank 1 {host} waits for data after step \d+ since [67] s; rank 0 waits for the other ranks",
        rf"rank 0 {host} does not answer, last heard of: .*; rank 1 ",
    ]
    assert len(lines) == len(expected), disturbed.output
    logs = [(disturbed.run / f"log-rank{rank}.txt").read_text() for rank in (0, 1)]
    for line, pattern in zip(lines, expected, strict=True):
        assert re.match(f"no progress for 6 s: {pattern}", line), line
        assert all(f" ERROR {line}\n" in log for log in logs)
    assert "Traceback" not in disturbed.output


def test_the_stacks_of_all_threads_are_in_the_logs(disturbed):
    """Reference: the functions in which the ranks hung; of stopped ones, which wake up to write it, the loop."""
    logs = [(disturbed.run / f"log-rank{rank}.txt").read_text() for rank in (0, 1)]
    stacks_R = [log.split("ERROR no progress: the stacks")[1:] for log in logs]
    assert [len(stacks) for stacks in stacks_R] == [HANGS, HANGS]
    assert ["in hangs_for_ever" in stacks for stacks in stacks_R[0]] == [False, False]
    assert ["in hangs_for_ever" in stacks for stacks in stacks_R[1]] == [True, False]
    assert all("training.py" in stacks and "train/data/stream.py" in stacks for stacks in [*stacks_R[0], *stacks_R[1]])


def test_stopped_processes_are_gone_in_time(disturbed):
    """Reference: the limit and what a few signs of life take."""
    assert all(LIMIT / 2 < seconds < LIMIT + MOST_SECONDS for seconds in disturbed.seconds), disturbed.seconds


@pytest.mark.slow
def test_what_takes_long_and_lives_is_left_alone(tiny, tmp_path):
    """Reference: the parts of rank 0 that are made to take longer than the limit, each; the other rank waits for it.

    They are the start of the model, a validation batch by batch, and the commits of checkpoints in their thread.
    """
    limit, run = 4.2, tmp_path / "run"
    plan = ["0:start:slow5.5", "0:validation:slow0.7", "0:commit:slow1.9"]
    settings = [
        "run.steps=6",
        "schedule.warmup_steps=2",
        "checkpoint.interval_steps=6",
        f"watchdog.minutes={limit / 60}",
    ]
    settings += ["validation.interval_steps=6", "validation.max_rows=32", f"run.directory={run}"]
    process = torchrun(tmp_path / "output.txt", 0, tmp_path, *plan, "pretrain", *tiny, *settings)
    assert process.wait(timeout=240) == 0, (tmp_path / "output.txt").read_text()
    account = (run / "goodput.json").read_text()
    for part in ("startup", "validation", "checkpoint"):
        assert float(re.search(rf'"{part}": ([\d.]+)', account)[1]) > limit, account
    assert "no progress" not in (run / "log-rank0.txt").read_text() + (run / "log-rank1.txt").read_text()
