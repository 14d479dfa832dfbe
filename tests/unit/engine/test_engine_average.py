"""The mean of the last checkpoints, against a mean of whole models in fp64."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import make_run, small_config

from train.__main__ import main

STEPS = (0, 10, 20, 30, 40)


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", small_config("joint"), STEPS)


@pytest.fixture
def average(capsys):
    """`average(run, output, last)`: the exit code, the words of stdout and those of stderr."""

    def call(run, output, last):
        code = main(["average", str(run), "--last", str(last), "--output", str(output)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def reference(run, steps):
    """fp64 mean of whole models, by the names of the checkpoint."""
    models = [load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors") for step in steps]
    return {name: sum(model[name].double() for model in models) / len(models) for name in models[0]}


def exported(folder):
    """The weights of an export by the names of the checkpoint, decoder included."""
    encoder, decoder = (load_file(folder / f"{part}.safetensors") for part in ("model", "decoder"))
    return {f"encoder.masked_lm.{name}": t for name, t in encoder.items()} | {
        f"decoder.{n}": t for n, t in decoder.items()
    }


def test_the_average_is_the_mean_of_the_newest_checkpoints_rounded_once(run, average, tmp_path):
    """Reference: the mean of whole models in fp64, rounded to fp32. The export opens, and its card names the steps."""
    from transformers import AutoModelForMaskedLM

    code, words, _ = average(run, tmp_path / "mean", 3)
    assert code == 0 and "steps 20, 30, 40" in words
    found, expected = exported(tmp_path / "mean"), reference(run, (20, 30, 40))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], mean.float()) for name, mean in expected.items())
    AutoModelForMaskedLM.from_pretrained(tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "bertmae.json").read_text())["averaged_steps"] == [20, 30, 40]
    assert "the mean of the checkpoints of the steps 20, 30, 40" in (tmp_path / "mean" / "README.md").read_text()


def test_damaged_checkpoints_and_that_of_step_0_are_named_and_left_out(run, average, tmp_path):
    """Reference: the mean of the two that are whole. One byte of step 30 is changed, a file of step 10 is gone."""
    path = run / "checkpoints" / "step-00000030" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (run / "checkpoints" / "step-00000010" / "state.json").unlink()
    code, words, _ = average(run, tmp_path / "mean", 5)
    assert code == 0 and "steps 20, 40" in words and "Only 2 of the 5" in words
    for part in (
        "step-00000030: model.safetensors does not match its checksum",
        "step-00000010: state.json",
        "step 0,",
    ):
        assert part in words
    expected = reference(run, (20, 40))
    assert all(torch.equal(t, expected[name].float()) for name, t in exported(tmp_path / "mean").items())


def test_mistakes_are_one_line(run, average, tmp_path):
    for folder, last, code, part in (
        (tmp_path / "nowhere", 3, 2, "no config.yaml, so no run folder"),
        (run, 1, 2, "at least two checkpoints"),
        (tmp_path / "one", 3, 4, "1 whole checkpoints to average"),
    ):
        if folder.name == "one":
            shutil.copytree(run, folder)
            for step in STEPS[:-1]:
                shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}")
        found, _, errors = average(folder, tmp_path / "mean", last)
        assert found == code and errors.count("\n") == 1 and part in errors
        assert not (tmp_path / "mean").exists()


def test_memory_is_that_of_the_result_and_of_one_tensor(tmp_path):
    """Reference: the result's own size. Five checkpoints of 96 MB in tensors of 4 MB; a process that kept two whole
    ones beside the result would take 96 MB more than is allowed here."""
    for number in range(5):
        (tmp_path / f"{number}").mkdir()
        tensors = {f"w{i}": torch.full((1 << 20,), float(number)) for i in range(24)}
        save_file(tensors, tmp_path / f"{number}" / "model.safetensors")
    program = (
        "import resource, sys; from pathlib import Path; from train.average import mean_weights\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "mean = mean_weights([Path(path) for path in sys.argv[1:]])\n"
        "assert all((t == 2).all() for t in mean.values())\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    paths = [str(tmp_path / f"{number}") for number in range(5)]
    done = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * 1024 < 2 * (96 << 20)
