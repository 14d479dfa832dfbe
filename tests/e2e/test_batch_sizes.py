"""A run whose batch size changes at steps, through the real commands: what it says, reads, and goes on with."""

import shutil

import pytest
from e2e_commands import command, metrics

STEPS = 14
LAUNCH = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
SETTINGS = ["batch.global_batch_size_at=[{step: 4, rows: 16}, {step: 10, rows: 24}]", f"run.steps={STEPS}"]
SETTINGS += ["checkpoint.interval_steps=6", "checkpoint.keep_last=4", "validation.interval_steps=100"]


def test_a_run_goes_on_across_changes_of_its_batch_size_bit_for_bit(tiny, tmp_path):
    """Reference: the run that never stopped. It has 8 rows a step to step 4, then 16, then 24 from step 10 on; the
    other one goes on from its step 6."""
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={whole}")
    assert done.returncode == 0, done.stderr
    assert "From step 4 on: global batch 16 rows = 2 per device x 2 devices x 4 accumulation steps" in done.stdout
    first = metrics(whole)
    epochs = [record["epoch"] for record in first]
    share = epochs[0] / 8
    expected = [8 * min(s, 4) + 16 * min(max(s - 4, 0), 6) + 24 * max(s - 10, 0) for s in range(1, STEPS + 1)]
    assert epochs == pytest.approx([rows * share for rows in expected])

    shutil.copytree(whole, resumed)
    for step in (12, STEPS):
        shutil.rmtree(resumed / "checkpoints" / f"step-{step:08d}")
    done = command(*LAUNCH, *tiny, *SETTINGS, f"run.directory={resumed}")
    assert done.returncode == 0, done.stderr
    assert "(step 6," in done.stdout
    names = ("step", "loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")
    assert [[record[name] for name in names] for record in metrics(resumed)] == [
        [record[name] for name in names] for record in first
    ]
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    assert (resumed / name).read_bytes() == (whole / name).read_bytes()
