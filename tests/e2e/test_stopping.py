"""Runs that are asked to stop or to save, and what they say of their time, under torchrun with two gloo ranks."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_commands import command, metrics, reached, start

LAUNCH = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
LONG = ["run.steps=100000", "checkpoint.interval_steps=100000", "validation.interval_steps=100000"]
LONG += ["validation.max_rows=16", "schedule.warmup_steps=5"]
MOST_SECONDS = 25.0  # from a request to the exit; torchrun and schedulers kill after 30


@pytest.fixture
def begin() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a command beside the test; it ends with the test, whatever the test found."""
    begun: list[subprocess.Popen] = []

    def begin(*words: object) -> subprocess.Popen:
        begun.append(start(*words))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=60)


def worker(run: Path, rank: int) -> int:
    """The process of a rank of this run."""
    found = subprocess.run(["pgrep", "-f", f"train pretrain.*run.directory={run}"], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} among {found.stdout.split()}")


def stopped(process: subprocess.Popen, run: Path, why: str, held: int = 0) -> int:
    """The run ends in time with exit code 75, says why, and has a checkpoint of its last step, which is returned; the
    records of `held` steps are in the checkpoint alone."""
    asked = time.monotonic()
    output = process.communicate(timeout=120)[0]
    assert time.monotonic() - asked <= MOST_SECONDS
    assert process.returncode == 75, output
    assert "Traceback" not in output
    step = len(metrics(run)) + held
    assert f"stopped at step {step} ({why}); the same command goes on from there" in output
    assert (run / "checkpoints" / "latest").read_text() == f"step-{step:08d}\n"
    for rank in (0, 1):
        assert f"step {step}: asked to stop ({why})" in (run / f"log-rank{rank}.txt").read_text()
    return step


def test_a_signal_on_one_rank_stops_a_run_of_the_demos_size_in_time(shards, begin, tmp_path):
    """Reference: 25 s from the signal to the exit, less than torchrun waits before it kills."""
    run = tmp_path / "run"
    settings = ["configs/demo.yaml", f"data.path={shards}", f"run.directory={run}", "logging.interval_steps=1"]
    process = begin(*LAUNCH, *settings)
    reached(run, 3, process)
    os.kill(worker(run, 1), signal.SIGTERM)
    assert stopped(process, run, "TERM on rank 1") >= 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="model.compile needs a C++ compiler")
def test_a_signal_during_the_first_compile_ends_a_run_in_time(shards, begin, tmp_path, monkeypatch):
    """Reference: as above; the first step compiles for longer than that. Rank 0, which is not asked, ends too."""
    run = tmp_path / "run"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))  # nothing of it is there
    process = begin(*LAUNCH, "configs/demo.yaml", f"data.path={shards}", f"run.directory={run}", "model.compile=true")
    while not (run / "checkpoints" / "latest").exists():
        assert process.poll() is None
        time.sleep(0.05)
    asked = time.monotonic()
    os.kill(worker(run, 1), signal.SIGTERM)
    output = process.communicate(timeout=120)[0]
    assert time.monotonic() - asked <= MOST_SECONDS
    assert process.returncode == 75 and "Traceback" not in output, output
    assert "stopped in the first step of this start (TERM on rank 1), which is not kept; the same command" in output
    assert (run / "checkpoints" / "latest").read_text() == "step-00000000\n" and metrics(run) == []


@pytest.fixture(scope="module")
def much_held_out(shards, tmp_path_factory) -> Path:
    """The same documents, half of them held out."""
    folder = tmp_path_factory.mktemp("half")
    source = ["--input", shards.parent / "text.jsonl", "--tokenizer", shards.parent / "tokenizer"]
    build = [*source, "--output", folder / "shards", "--validation-fraction", 0.5, "--workers", 1]
    done = command("data_pipeline", "build", *build)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


def test_a_request_during_a_validation_cuts_it_short_and_the_next_start_does_it(much_held_out, begin, tmp_path):
    """Reference: each step once, the last one with its validation: hundreds of batches at first, few at the end."""
    run = tmp_path / "run"
    settings = ["configs/demo.yaml", f"data.path={much_held_out}", f"run.directory={run}", *LONG]
    settings += ["validation.interval_steps=2", "validation.max_rows=100000", "model.encoder.num_hidden_layers=24"]
    settings += ["batch.micro_batch_size=1", "logging.interval_steps=1"]
    process = begin(*LAUNCH, *settings)
    log = run / "log-rank0.txt"
    reached(run, 1, process)
    time.sleep(2 * metrics(run)[0]["step_seconds"])  # step 2, and into its validation
    os.kill(worker(run, 1), signal.SIGTERM)
    assert stopped(process, run, "TERM on rank 1", held=1) == 2
    assert "step 2: validation was cut short by a request to stop" in log.read_text()
    short = ["validation.max_rows=16", "run.steps=2", "schedule.warmup_steps=1"]
    done = command(*LAUNCH, *settings, *short)
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in metrics(run)] == [1, 2]
    assert metrics(run)[1]["validation_loss"] > 0 and "are gone" not in done.stdout
    again = command(*LAUNCH, *settings, *short)
    assert "Nothing to do" in again.stdout and len(metrics(run)) == 2


def test_a_file_stops_the_run_and_the_next_start_goes_on(tiny, begin, tmp_path):
    """Reference: the same command, which does a step more; the file is gone with the first stop."""
    run, words = tmp_path / "run", [*LAUNCH, *tiny, *LONG]
    process = begin(*words, f"run.directory={run}")
    reached(run, 3, process)
    (run / "stop").touch()
    step = stopped(process, run, "file stop")
    assert not (run / "stop").exists()
    done = command(*words, f"run.directory={run}", f"run.steps={step + 1}")
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in metrics(run)] == list(range(1, step + 2))


def test_a_file_asks_for_a_checkpoint_and_the_run_goes_on(tiny, begin, tmp_path):
    """Reference: a checkpoint between the intervals, twice; two requests make two checkpoints and no more."""
    run = tmp_path / "run"
    process = begin(*LAUNCH, *tiny, *LONG, "checkpoint.keep_last=9", f"run.directory={run}")
    reached(run, 3, process)
    for count in (2, 3):
        (run / "save").touch()
        deadline = time.monotonic() + 30
        while (run / "save").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not (run / "save").exists()
        saved = len(metrics(run))
        reached(run, saved + 30, process)
        assert len(list((run / "checkpoints").glob("step-*"))) == count


def test_a_run_stops_when_its_minutes_are_over(tiny, begin, tmp_path):
    """Reference: the clock; 18 s may be over before the first step. The option is the same as the field."""
    run, began = tmp_path / "run", time.monotonic()
    process = begin(*LAUNCH, *tiny, *LONG, f"run.directory={run}", "--max-minutes", "0.3")
    time.sleep(18)
    stopped(process, run, "0.3 minutes are over")
    assert time.monotonic() - began >= 18
    assert "max_minutes: 0.3\n" in (run / "config.yaml").read_text()


@pytest.mark.parametrize("minutes", ["0", "-3", "soon", "nan"])
def test_minutes_that_are_none_are_one_clear_line(tiny, tmp_path, minutes):
    """Reference: the line of every mistaken field."""
    done = command("train", "pretrain", *tiny, f"run.directory={tmp_path}/run", f"--max-minutes={minutes}")
    assert done.returncode == 2
    assert done.stderr.startswith("bertmae: ") and done.stderr.count("\n") == 1
    assert "run.max_minutes" in done.stderr


def test_the_time_of_a_run_that_was_killed_and_went_on_is_accounted_for(tiny, begin, tmp_path):
    """Reference: the clock beside the run, and the records of the steps that were done twice.

    All parts together are the time from the first process to the last checkpoint; what was lost is the time that the
    first start recorded beyond the step it was taken up from.
    """
    run, words = tmp_path / "run", [*LAUNCH, *tiny, *LONG, "checkpoint.interval_steps=20", "validation.max_rows=8"]
    words += ["validation.interval_steps=30", f"run.directory={run}"]
    began = time.monotonic()
    process = begin(*words)
    reached(run, 35, process)
    for rank in (1, 0):
        os.kill(worker(run, rank), signal.SIGKILL)
    process.communicate(timeout=90)
    before = metrics(run)
    time.sleep(3)
    done = command(*words, "run.steps=80")
    seconds = time.monotonic() - began
    assert done.returncode == 0, done.stderr
    resumed = int(re.search(r"\(step (\d+),", done.stdout)[1])
    account = json.loads((run / "goodput.json").read_text())
    parts = account["seconds"]
    assert account["starts"] == 2 and account["step"] == 80
    assert parts["lost"] == pytest.approx(sum(r["step_seconds"] for r in before[resumed:]), abs=1e-6)
    assert parts["lost"] > 0
    assert all(value >= 0 for value in parts.values()), parts
    assert parts["idle"] >= 3
    assert seconds - 20 <= sum(parts.values()) <= seconds, "the launcher's own start and end are no part of it"
    needed = [*before[:resumed], *metrics(run)[resumed:]]
    steps = sum(record["step_seconds"] for record in needed)
    assert parts["steps"] + parts["data_wait"] == pytest.approx(steps, rel=0.05, abs=0.2)
    last = metrics(run)[-1]
    assert last["goodput"] == pytest.approx(parts["steps"] / sum(parts.values()), abs=0.05)
    assert {name.removesuffix("_seconds_total") for name in last if name.endswith("_total")} == set(parts)
    assert re.search(r"Goodput \d+\.\d% of .* since the first of 2 starts: startup .*, lost .*, idle ", done.stdout)
