"""Runs that stop, die or lose files, through the real commands under torchrun. fp32, dropout on, two gloo ranks."""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from e2e_commands import command, metrics, reached, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

STEPS = 120
LAUNCH = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
SETTINGS = [f"run.steps={STEPS}", "checkpoint.interval_steps=20"]
SETTINGS += ["validation.interval_steps=50", "validation.max_rows=16"]


def weights(run: Path, step: int = STEPS) -> bytes:
    return (run / "checkpoints" / f"step-{step:08d}" / "model.safetensors").read_bytes()


def curve(run: Path) -> list[tuple]:
    """What must be bit-equal: losses, norms and counters, without timings."""
    names = ("step", "loss", "mlm_loss", "reconstruction_loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")
    return [tuple(record[name] for name in names) for record in metrics(run)]


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    assert len(metrics(run)) == STEPS
    return run


@pytest.fixture
def copy(undisturbed, tmp_path) -> Path:
    """A finished run to damage, without its last checkpoint's step in the way."""
    return Path(shutil.copytree(undisturbed, tmp_path / "copy"))


def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(undisturbed, tiny, tmp_path):
    """Reference: the undisturbed run. From the signal on: an agreed step, a committed checkpoint, exit code 75."""
    run = tmp_path / "stopped"
    process = start(*LAUNCH, *tiny, *SETTINGS, f"run.directory={run}")
    reached(run, 7, process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 75, output
    assert "Traceback" not in output
    stopped_at = metrics(run)[-1]["step"]
    assert 7 <= stopped_at <= STEPS - 20, "the signal came too late to leave 20 further steps"
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    assert f"(step {stopped_at}," in done.stdout
    assert curve(run) == curve(undisturbed)
    assert weights(run) == weights(undisturbed)


@pytest.mark.slow
def test_a_killed_rank_costs_only_the_steps_since_the_last_checkpoint(undisturbed, tiny, tmp_path):
    """Reference: the undisturbed run, bit for bit; no step twice in metrics.jsonl or TensorBoard."""
    run = tmp_path / "killed"
    process = start(*LAUNCH, *tiny, *SETTINGS, f"run.directory={run}")
    reached(run, 30, process)
    workers = subprocess.run(["pgrep", "-f", f"train pretrain.*run.directory={run}"], capture_output=True, text=True)
    mine = [int(pid) for pid in workers.stdout.split() if int(pid) != process.pid]
    os.kill(mine[-1], signal.SIGKILL)
    output = process.communicate(timeout=90)[0]
    assert process.returncode == 1
    assert "was killed by signal 9" in output
    assert "Traceback" not in output.splitlines()[-1]
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    assert curve(run) == curve(undisturbed)
    assert weights(run) == weights(undisturbed)
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == list(range(1, STEPS + 1))


def test_a_finished_run_says_so_at_once(copy, tiny):
    before = (copy / "metrics.jsonl").read_bytes()
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={copy}")
    assert done.returncode == 0
    assert "Nothing to do" in done.stdout
    assert (copy / "metrics.jsonl").read_bytes() == before


def test_an_emptied_checkpoint_folder_is_never_a_silent_start_from_zero(copy, tiny):
    shutil.rmtree(copy / "checkpoints")
    (copy / "checkpoints").mkdir()
    done = command("train", "pretrain", *tiny, *SETTINGS, f"run.directory={copy}")
    assert done.returncode == 4
    assert done.stderr.startswith("bertmae: no whole checkpoint") and done.stderr.count("\n") == 1
    assert metrics(copy)[-1]["step"] == STEPS


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_taken(undisturbed, copy, tiny):
    """Reference: the undisturbed run, which the repeated steps reproduce bit for bit."""
    newest = copy / "checkpoints" / f"step-{STEPS:08d}" / "exp_avg.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={copy}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"Not used: .*step-00000120: exp_avg.safetensors does not match its checksum", done.stdout)
    assert curve(copy) == curve(undisturbed)
    assert weights(copy) == weights(undisturbed)


@pytest.mark.slow  # test_layouts.py changes more in less time
def test_a_run_goes_on_at_another_world_size_and_stage_with_the_same_curve(undisturbed, tiny, tmp_path):
    """Reference: the undisturbed two ranks at stage 2. Dropout depends on the rank, so it is off on both sides here."""
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    settings = [*tiny, *SETTINGS, "model.encoder.hidden_dropout_prob=0.0", "run.steps=60"]
    for run, ranks, stage, steps in ((plain, 2, 2, 60), (moved, 2, 2, 20), (moved, 1, 3, 40), (moved, 2, 1, 60)):
        launch = ["train", "launch", "--nproc-per-node", ranks, "pretrain"]
        changed = [f"run.directory={run}", f"run.steps={steps}", f"engine.ds_config=ds_configs/zero{stage}.json"]
        done = command(*launch, *settings, *changed, "schedule.name=constant")
        assert done.returncode == 0, done.stderr
    for (step, *expected), (other, *found) in zip(curve(plain), curve(moved), strict=True):
        assert step == other
        assert found == pytest.approx(expected, rel=1e-5)
