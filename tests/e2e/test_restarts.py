"""torchrun starts failed ranks again: the run goes on by itself; a mistake or a request to stop is no failure."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from e2e_commands import command, metrics, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 60
LAUNCH = ["train", "launch", "--nproc-per-node", 2]
RESTARTED = [*LAUNCH, "--max-restarts", 3, "pretrain"]
SETTINGS = [f"run.steps={STEPS}", "checkpoint.interval_steps=8", "validation.interval_steps=25"]
SETTINGS += ["validation.max_rows=16"]


def worker(run: Path, rank: int) -> int | None:
    """The process of a rank of this run, where there is one."""
    found = subprocess.run(["pgrep", "-f", f"pretrain.*run.directory={run}"], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        try:
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if f"RANK={rank}".encode() in variables:
            return pid
    return None


def wait_for(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


def recorded(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def kill(run: Path, rank: int) -> None:
    os.kill(worker(run, rank), signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = command(*LAUNCH, "pretrain", *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


def test_a_run_whose_ranks_are_killed_goes_on_by_itself(undisturbed, tiny, tmp_path):
    """Reference: the undisturbed run, bit for bit; no step twice or missing in metrics.jsonl or TensorBoard."""
    run = tmp_path / "run"
    process = start(*RESTARTED, *tiny, *SETTINGS, f"run.directory={run}")
    for rank, step in ((1, 20), (0, 40)):
        wait_for(lambda step=step: recorded(run) >= step, process)
        kill(run, rank)
        wait_for(lambda step=step: recorded(run) < step, process)  # cut back to the checkpoint
    output = process.communicate(timeout=240)[0]
    assert process.returncode == 0, output
    assert re.findall(r"Start (\d) of this command: a worker had failed", output) == ["2", "3"]
    names = ("step", "loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")
    curves = [[[record[name] for name in names] for record in metrics(path)] for path in (run, undisturbed)]
    assert curves[0] == curves[1]
    weights = Path("checkpoints") / f"step-{STEPS:08d}" / "model.safetensors"
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, STEPS + 1))


def test_the_last_restart_used_up_is_one_clear_line(tiny, tmp_path):
    """Reference: exit code 1, and what to do, as the last words. Both starts are killed while they begin."""
    run = tmp_path / "run"
    process = start(*LAUNCH, "--max-restarts", 1, "pretrain", *tiny, *SETTINGS, f"run.directory={run}")
    killed: set[int | None] = {None}
    for _ in range(2):
        wait_for(lambda: worker(run, 1) not in killed, process)
        killed.add(worker(run, 1))
        kill(run, 1)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1, output
    assert re.search(r"^bertmae: a worker \(local rank \d\) was killed by signal 9; start the same", output, re.M)


@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        ("run.stepz=1", 2, "run.stepz"),  # every rank reads the same mistake, before they meet
        ("run.seed=5", 2, "holds a run with run.seed = 0"),  # rank 0 finds it, and all hear of it
        ("run.max_minutes=0.0001", 75, "minutes are over"),
    ],
)
def test_what_would_happen_again_is_not_started_again(undisturbed, tiny, changed, code, words):
    """Reference: the exit code and the one line of a start without restarts."""
    given = [*tiny, *SETTINGS, f"run.directory={undisturbed}", f"run.steps={STEPS + 10}", changed]
    done = command(*RESTARTED, *given)
    assert done.returncode == code, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("bertmae: ")]
    assert words in line
    assert "Start 2" not in done.stdout and "Traceback" not in done.stderr


@pytest.mark.slow
def test_torchrun_itself_repeats_a_mistake_once_for_each_restart(tiny, tmp_path):
    """Reference: the same clear line twice; torchrun knows no exit codes, and its own is 1."""
    options = ["--standalone", "--nproc-per-node", 2, "--max-restarts", 1, "-m", "train", "pretrain"]
    done = command("torch.distributed.run", *options, *tiny, "run.stepz=1", f"run.directory={tmp_path}/run")
    assert done.returncode == 1
    assert len(re.findall(r"^bertmae: .*run\.stepz", done.stderr, re.M)) == 2
