"""Fine-tuning by the real commands: an export of real text, two ranks under DeepSpeed, Ctrl-C, mistakes."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from e2e_commands import ROOT, command, environment
from safetensors.torch import load_file


@pytest.fixture(scope="module")
def exported(tiny, tmp_path_factory):
    """A run of two steps without dropout: what it learned does not matter here."""
    run = tmp_path_factory.mktemp("finetune") / "run"
    words = [*tiny, "model.encoder.hidden_dropout_prob=0.0", "schedule.warmup_steps=1", "run.steps=2"]
    done = command("train", "pretrain", *words, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    done = command("train", "export", run, "--output", run.parent / "model")
    assert done.returncode == 0, done.stderr
    return run.parent / "model"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Sentences that hold `import` or do not; as many as fill whole batches, which ranks do not fill up with others."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 64), ("validation", 32)):
        texts = [f"the {('import', 'return')[n % 2]} statement of class {n}" for n in range(count)]
        rows = [{"text": text, "label": "import" if "import" in text else "other"} for text in texts]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return ["--train", folder / "train.jsonl", "--validation", folder / "validation.jsonl"]


def finetune(exported, files, output, *further, launcher=()):
    words = ["finetune", "classification", "--model", exported, *files, "--output", output, "--global-batch-size", 16]
    return [*launcher, "train", *words, "--learning-rate", "3e-3", *further]


TWO_RANKS = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m")


@pytest.mark.slow
def test_two_ranks_under_deepspeed_end_with_the_weights_of_one(exported, files, tmp_path):
    """Reference: one process without DeepSpeed; there is no dropout. One rank speaks, and the result predicts."""
    one = command(*finetune(exported, files, tmp_path / "one", "--epochs", 3))
    assert one.returncode == 0, one.stderr
    deepspeed = ("--epochs", 3, "--micro-batch-size", 4, "--deepspeed", "ds_configs/zero2.json")
    two = command(*finetune(exported, files, tmp_path / "two", *deepspeed, launcher=TWO_RANKS))
    assert two.returncode == 0, two.stderr
    assert "16 rows a step = 4 at once x 2 ranks x 2 accumulation steps" in two.stdout
    assert two.stdout.count("accuracy") == one.stdout.count("accuracy")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=5e-4)
    said = command("train", "predict", "--model", tmp_path / "two", "the import statement", "the return statement")
    assert all(json.loads(line)["label"] in ("import", "other") for line in said.stdout.splitlines()), said.stderr
    assert said.stdout.count("\n") == 2


def test_an_interrupted_command_goes_on_when_it_is_given_again(exported, files, tmp_path):
    """INT is what Ctrl-C sends. That the weights are those of a run without it is tested in tests/unit/finetune."""
    words = list(map(str, finetune(exported, files, tmp_path / "out", "--epochs", 15)))
    with subprocess.Popen(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while not list((tmp_path / "out").glob("checkpoints/checkpoint-*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75 and "the same command goes on from there" in stderr and stderr.count("\n") == 1
    again = command(*words)
    assert again.returncode == 0 and "Goes on from step" in again.stdout, again.stderr
    assert json.loads((tmp_path / "out" / "results.json").read_text())["steps"] == 60


def test_mistakes_are_one_line(exported, files, tmp_path):
    """No traceback, nothing written; on two ranks the first one speaks."""
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "import"}\n{"text": "a", "label": "imprt"}\n')
    bad = [*files, "--test", tmp_path / "bad.jsonl"]
    cases = (
        (("train",), [*files, "--epochs", 0], 2, "--epochs 0.0: must be above 0"),
        (("train", "launch", "--nproc-per-node", 2), bad, 3, "bad.jsonl:2: the label 'imprt' does not occur"),
    )
    for launcher, words, code, said in cases:
        done = command(*launcher, *finetune(exported, words, tmp_path / "out")[1:])
        assert done.returncode == code and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
        assert not (tmp_path / "out").exists()
