"""A run whose folder lies on a disk that is full for a while, through the real command."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_commands import ROOT, environment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.errors import StoppedError
from train.monitor.metrics import read_metrics

SETTINGS = ["run.steps=100000", "checkpoint.interval_steps=100000", "validation.interval_steps=100000"]
# A learning rate that makes a spike of some 60 steps: incidents have no room either.
SETTINGS += ["validation.max_rows=4", "schedule.name=constant", "optimizer.learning_rate=1.0"]
SETTINGS += ["incidents.spike_deviations=3.0", "incidents.spike_warmup_steps=0", "incidents.spike_window=10"]


@pytest.fixture
def small_disk(tmp_path):
    """Start a command on a file system of its own of 8 MB at `run`; the process, and where we see that folder."""
    run = tmp_path / "run"
    run.mkdir()
    mount = 'mount -t tmpfs -o size=8m tmpfs "$0" && exec "$@"'
    wrapper = ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, run]
    if shutil.which("unshare") is None or subprocess.run([*wrapper, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a small file system")

    def begin(*words: object, output: Path) -> tuple[subprocess.Popen, Path]:
        command = [*wrapper, sys.executable, "-m", "train", "pretrain", *words, f"run.directory={run}"]
        with output.open("w") as file:
            process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=file, stderr=file)
        return process, Path(f"/proc/{process.pid}/root") / run.relative_to("/")

    return begin


def fill(file: Path) -> None:
    """Take all room there is, to the last byte."""
    with file.open("wb", buffering=0) as filler:
        try:
            while filler.write(bytes(1 << 12)):
                pass
        except OSError:
            return


def wait_for(condition, process: subprocess.Popen, output: Path) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, output.read_text()
        time.sleep(0.01)


def test_records_that_found_no_room_are_written_when_there_is_some(tiny, small_disk, tmp_path):
    """Reference: the counting numbers in metrics.jsonl and TensorBoard, and one warning for each file."""
    output, kept = tmp_path / "output.txt", tmp_path / "kept"
    process, run = small_disk(*tiny, *SETTINGS, output=output)
    records = run / "metrics.jsonl"
    wait_for(lambda: records.exists() and len(read_metrics(records)) > 5, process, output)
    fill(run / "filler")
    names = ("metrics.jsonl", "events.out.tfevents", "incidents.jsonl")
    refused = "cannot be written (No space left on device)"
    wait_for(lambda: all(_lines(output, name, refused) for name in names), process, output)
    at = read_metrics(records)[-1]["step"]
    time.sleep(0.3)
    assert read_metrics(records)[-1]["step"] == at, "the disk was not full"
    (run / "filler").unlink()
    wait_for(lambda: read_metrics(records)[-1]["step"] > at, process, output)
    shutil.copytree(run, kept, ignore=shutil.ignore_patterns("checkpoints", "*.txt"))  # the disk goes with the process
    process.terminate()
    assert process.wait(timeout=120) == StoppedError.exit_code, output.read_text()
    assert "Traceback" not in output.read_text()
    assert all(len(_lines(output, name, refused)) == 1 for name in names)
    steps = [record["step"] for record in read_metrics(kept / "metrics.jsonl")]
    assert steps == list(range(1, len(steps) + 1)) and steps[-1] > at
    curves = EventAccumulator(str(kept / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    shown = [event.step for event in curves.Scalars("loss/total")]
    assert shown == list(range(1, len(shown) + 1)) and shown[-1] > at


def _lines(output: Path, *words: str) -> list[str]:
    return [line for line in output.read_text().splitlines() if all(word in line for word in words)]
