"""Mixtures and schedules through the real commands: two data sets, weights and a length that change at steps."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
from e2e_commands import TINY, command, metrics

STEPS = 30


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> list[Path]:
    """Two data sets of one tokenizer."""
    folder = tmp_path_factory.mktemp("pair")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    for name, part in (("a", paragraphs[::3]), ("b", paragraphs[1::3])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in part))
    words = ["--input", folder / "a.jsonl", "--output", folder / "tokenizer", "--vocab-size", 600]
    assert command("data_pipeline", "tokenizer", *words).returncode == 0
    for name in "ab":
        words = ["--input", folder / f"{name}.jsonl", "--tokenizer", folder / "tokenizer", "--output", folder / name]
        done = command("data_pipeline", "build", *words, "--workers", 1, "--validation-fraction", 0.05)
        assert done.returncode == 0, done.stderr
    return [folder / "a", folder / "b"]


def settings_for(pair, run) -> list:
    a, b = pair
    changes = [
        f"data.sources=[{{name: a, path: {a}, weight: 3}}, {{name: b, path: {b}, weight: 1}}]",
        "data.weights_at=[{step: 10, weights: [1, 1]}]",
        "data.sequence_length=32",
        "data.sequence_length_at=[{step: 20, length: 64}]",
        "batch.same_tokens_per_step=true",
        "model.encoder.hidden_dropout_prob=0.0",
        "schedule.name=constant",
        f"run.steps={STEPS}",
        "validation.interval_steps=15",
        "validation.max_rows=8",
        "checkpoint.interval_steps=7",
        f"run.directory={run}",
    ]
    return ["configs/demo.yaml", *TINY, *changes]


def test_a_mixture_trains_and_goes_on_at_another_world_size(pair, tmp_path):
    """Reference: the run that never stopped, in every loss; the epochs of the sources by their weights."""
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    done = command("train", "launch", "--nproc-per-node", 2, "pretrain", *settings_for(pair, plain))
    assert done.returncode == 0, done.stderr
    assert "Source a (75.0%) packs into" in done.stdout
    for ranks, steps in ((1, 7), (2, 13), (1, 24), (2, STEPS)):
        words = [*settings_for(pair, moved), f"run.steps={steps}"]
        done = command("train", "launch", "--nproc-per-node", ranks, "pretrain", *words)
        assert done.returncode == 0, done.stderr
    first, again = metrics(plain), metrics(moved)
    for name in ("step", "tokens_seen", "epoch_a", "epoch_b"):
        assert [record[name] for record in first] == [record[name] for record in again]
    assert [record["loss"] for record in again] == pytest.approx([record["loss"] for record in first], rel=1e-4)
    gained = [first[9][name] - first[0][name] for name in ("epoch_a", "epoch_b")]
    assert gained[0] > 2 * gained[1]
    assert all(record["damaged_rows"] == 0 for record in first)
    assert "validation_loss" in first[-1]


@pytest.mark.slow
def test_a_run_that_must_not_repeat_ends_with_its_data(pair, tmp_path):
    """Reference: one epoch, then exit code 0 with a checkpoint; the same command again has nothing left to read."""
    run = tmp_path / "once"
    once = [f"data.path={pair[0]}", "data.when_exhausted=stop", "run.steps=5000", f"run.directory={run}"]
    words = ["train", "launch", "--nproc-per-node", 2, "pretrain", "configs/demo.yaml", *TINY, *once]
    done = command(*words, "validation.max_rows=8")
    assert done.returncode == 0, done.stderr
    last = metrics(run)[-1]
    assert last["epoch"] == 1 and last["step"] < 5000 and last["step"] == len(metrics(run))
    assert "validation_loss" in last
    assert "The data are at their end" in done.stdout
    assert (run / "checkpoints" / f"step-{last['step']:08d}").exists()
    again = command(*words)
    assert again.returncode == 0, again.stderr
    assert metrics(run)[-1] == last
