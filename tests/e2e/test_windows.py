"""What looks at a run from beside leaves no trace in it: the profiler's window, trials of micro-batches before it."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_commands import ROOT, command, environment, metrics

from train.config_file import load_config

SETTINGS = ["run.steps=5", "checkpoint.interval_steps=100", "validation.interval_steps=3", "batch.micro_batch_size=4"]
RUNS = {
    "plain": [],
    "profiled": ["profile.start_step=2", "profile.steps=2", "profile.memory=true"],
    "searched": ["--find-micro-batch"],
}
MEASURED = ("loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> tuple[Path, str]:
    """The folder of the runs, and what they said."""
    folder = tmp_path_factory.mktemp("windows")
    words = [["pretrain", *tiny, *SETTINGS, *own, f"run.directory={folder / name}"] for name, own in RUNS.items()]
    words.append(["pretrain", str(folder / "searched/config.yaml"), f"run.directory={folder / 'configured'}"])
    worker = [sys.executable, str(Path(__file__).with_name("commands_worker.py")), *map(json.dumps, words)]
    variables = environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(worker, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.mark.parametrize(("name", "reference"), [("profiled", "plain"), ("searched", "configured")])
def test_a_run_that_is_looked_at_is_the_plain_run_bit_for_bit(runs, name, reference):
    """Reference: the run of the same configuration without; for trials, with the micro-batch that they have found."""
    folder, _ = runs
    records = {run: metrics(folder / run) for run in (reference, name)}
    assert len(records[reference]) == 5
    measured = {run: [[record[key] for key in MEASURED] for record in found] for run, found in records.items()}
    assert measured[name] == measured[reference]
    weights = [folder / run / "checkpoints/step-00000005/model.safetensors" for run in (reference, name)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_window_has_a_trace_of_a_real_step(runs):
    """Reference: the steps asked for; a step of training has products of matrices, forward and backward."""
    folder, said = runs
    [trace] = (folder / "profiled" / "profile").glob("*.gz")
    assert trace.name == "rank0-steps-2-3.pt.trace.json.gz"
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    steps = sorted(event["name"] for event in events if event["name"].startswith("ProfilerStep#"))
    assert steps == ["ProfilerStep#2", "ProfilerStep#3"]
    assert sum(event["name"] == "aten::mm" for event in events) > 20
    assert any("Backward" in event["name"] for event in events)
    assert "Steps 2 to 3 are profiled" in said
    assert "no snapshot is written" in said
    assert not (folder / "plain" / "profile").exists()


def test_trials_say_what_was_tried_and_taken(runs):
    """Reference: the sizes that divide the global batch, and what the run then uses."""
    folder, said = runs
    lines = said.splitlines()
    head = next(number for number, line in enumerate(lines) if "Micro-batches tried, with full rows of 64" in line)
    table = [line.split() for line in lines[head + 2 : head + 4]]
    assert [row[0] for row in table] == ["1", "2"]
    assert all(float(row[1].replace(",", "")) > 0 and 0 < float(row[2]) < float(row[3]) for row in table)
    taken = load_config(folder / "searched" / "config.yaml").batch.micro_batch_size
    assert any("batch.micro_batch_size" in line and f" {taken} " in line and "fastest" in line for line in lines)


@pytest.mark.slow
def test_two_ranks_take_one_size_and_go_on_bit_for_bit(tiny, tmp_path):
    """Reference: a run with the size that was found. A second start of both searches no more."""
    launch = ["train", "launch", "--nproc-per-node", 2, "pretrain", *tiny, *SETTINGS, "schedule.warmup_steps=2"]
    searched, configured = f"run.directory={tmp_path / 'searched'}", f"run.directory={tmp_path / 'configured'}"
    first = command(*launch, "--find-micro-batch", searched, "run.steps=3")
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("the fastest that fits") == 1
    taken = load_config(tmp_path / "searched/config.yaml").batch.micro_batch_size
    assert 8 % (2 * taken) == 0
    size = f"batch.micro_batch_size={taken}"
    for words in ([configured, "run.steps=3"], [configured], [searched]):
        done = command(*launch, size, *words)
        assert done.returncode == 0, done.stderr
    losses = [[record["loss"] for record in metrics(tmp_path / name)] for name in ("searched", "configured")]
    assert len(losses[0]) == 5
    assert losses[0] == losses[1]
    weights = [tmp_path / name / "checkpoints/step-00000005/model.safetensors" for name in ("searched", "configured")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
