"""`checkpoint list`, `verify`, `delete-incomplete` and `consolidate` on real folders, whole and damaged."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

from train.__main__ import main
from train.checkpoint import save_checkpoint
from train.config_file import dump_config
from train.run_directory import lock


@pytest.fixture
def run(tmp_path, configure):
    """A run with the checkpoints of the steps 0, 10, 20, 30: 20 is the best one and kept for good."""
    folder = tmp_path / "run"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")
    (folder / "config.yaml").write_text(dump_config(configure("checkpoint.keep_every=20")))
    for step, loss in ((0, 9.0), (10, 3.0), (20, 2.0), (30, 4.0)):
        tables = {name: {"w": torch.arange(100.0) + step} for name in ("model", "exp_avg", "exp_avg_sq")}
        state = {"tokens_seen": step * 1000, "validation_loss": loss}
        save_checkpoint(folder / "checkpoints", step, tables, state, 10, keep_every=20, keep_best=True)
    return folder


@pytest.fixture
def tool(capsys):
    """`tool(action, run, ...)`: the exit code, the lines of stdout and those of stderr."""

    def call(action, run, *more):
        code = main(["checkpoint", action, str(run), *map(str, more)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err.splitlines()

    return call


def flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_list_says_what_is_there_and_why_it_stays(run, tool):
    """Reference: what was saved."""
    code, [_, *lines], errors = tool("list", run)
    assert (code, errors) == (0, [])
    words = [" ".join(line.split()) for line in lines]
    size = sum(file.stat().st_size for file in (run / "checkpoints" / "step-00000010").iterdir()) / 1000
    assert words[1] == f"10 10,000 {size:.1f} KB whole"
    assert [word.partition("whole")[2] for word in words] == ["", "", ", best, kept for good", ", latest"]


def test_the_list_names_what_is_not_whole(run, tool):
    """Reference: the damage done here: a file too short, no manifest, no state, a temporary folder."""
    folder = run / "checkpoints"
    (folder / "step-00000000" / "model.safetensors").write_bytes(b"x")
    (folder / "step-00000010" / "manifest.json").unlink()
    (folder / "step-00000020" / "state.json").unlink()
    (folder / ".step-00000040.partial").mkdir()
    code, [_, *lines], _ = tool("list", run)
    assert code == 0
    assert "model.safetensors has 1 bytes instead of" in lines[0]
    assert "manifest.json: No such file or directory" in lines[1]
    assert "?" in lines[2] and "state.json: No such file or directory" in lines[2]
    assert lines[4].startswith(".step-00000040.partial: half-written")


def test_verify_reads_every_byte_and_names_every_damaged_file(run, tool):
    """Reference: whole folders, and one flipped bit in each of three files, which changes no size."""
    folder = run / "checkpoints"
    code, lines, errors = tool("verify", run)
    assert (code, errors) == (0, [])
    assert lines == [f"{folder}/step-000000{step}: whole" for step in ("00", "10", "20", "30")]
    damaged = ["step-00000010/exp_avg.safetensors", "step-00000010/model.safetensors", "step-00000030/state.json"]
    for name in damaged:
        flip(folder / name)
    code, lines, errors = tool("verify", run)
    assert code == 4
    named = [line for line in lines if not line.endswith(": whole")]
    assert [line.partition(" does not match its checksum")[0].replace(": ", "/") for line in named] == [
        f"{folder}/{name}" for name in damaged
    ]
    [error] = errors
    assert error.startswith(f"bertmae: {folder}/step-00000010: exp_avg.safetensors does not match its checksum")
    assert "(and 2 more)" in error


def test_verify_of_a_run_without_checkpoints_is_an_error(run, tool):
    """Reference: exit code 4."""
    shutil.rmtree(run / "checkpoints")
    code, lines, [error] = tool("verify", run)
    assert (code, lines) == (4, [])
    assert "no checkpoint is there" in error


def test_only_what_is_incomplete_is_deleted(run, tool):
    """Reference: the names: two temporary folders and one without a manifest go; damaged ones and copies stay."""
    folder = run / "checkpoints"
    flip(folder / "step-00000020" / "model.safetensors")
    shutil.copytree(folder / "step-00000010", folder / "step-00000010-mine")
    for name in (".step-00000040.partial", ".step-00000020.damaged"):
        shutil.copytree(folder / "step-00000010", folder / name)
    for name in ("step-00000010", "step-00000010-mine"):
        (folder / name / "manifest.json").unlink()
    gone = [".step-00000020.damaged", ".step-00000040.partial", "step-00000010"]
    stays = sorted({path.name for path in folder.iterdir()} - set(gone))
    code, lines, errors = tool("delete-incomplete", run)
    assert (code, errors) == (0, [])
    assert lines == [f"Removed {folder / name}." for name in gone]
    assert sorted(path.name for path in folder.iterdir()) == stays
    code, [line], _ = tool("delete-incomplete", run)
    assert code == 0
    assert line.startswith("Nothing to remove")


def test_nothing_is_deleted_under_a_run_that_trains(run, tool):
    """Reference: the lock that training holds; a temporary folder there is being written."""
    partial = run / "checkpoints" / ".step-00000040.partial"
    partial.mkdir()
    with lock(run):
        code, _, [error] = tool("delete-incomplete", run)
    assert code == 2
    assert "another process is training in this folder" in error
    assert partial.exists()


@pytest.mark.parametrize("action", ["list", "verify", "delete-incomplete"])
def test_a_folder_that_is_no_run_is_one_clear_line(tmp_path, tool, action):
    """Reference: exit code 2; nothing is created."""
    for folder in (tmp_path / "nowhere", tmp_path):
        code, lines, [error] = tool(action, folder)
        assert (code, lines) == (2, [])
        assert error == f"bertmae: {folder}: no config.yaml, so no run folder"
    assert not (tmp_path / "nowhere").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Copying out


@pytest.mark.parametrize(("words", "step"), [([], 30), (["--step", 10], 10), (["--step", 0], 0)])
def test_the_weights_of_one_step_come_out_whole_and_checked(run, tool, tmp_path, words, step):
    """Reference: what was saved, and the files of the run."""
    code, [line], errors = tool("consolidate", run, "--output", tmp_path / "out", *words)
    assert (code, errors) == (0, [])
    assert f"Copied step {step} " in line and "100 fp32 weights in 1 tensors" in line
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.yaml",
        "model.safetensors",
        "tokenizer",
    ]
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["w"], torch.arange(100.0) + step)
    assert (tmp_path / "out" / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    assert (tmp_path / "out" / "tokenizer" / "tokenizer.json").read_text() == "{}"


def test_a_damaged_newest_one_is_named_and_the_one_before_copied(run, tool, tmp_path):
    """Reference: the rule by which a run goes on."""
    flip(run / "checkpoints" / "step-00000030" / "model.safetensors")
    code, [first, second], _ = tool("consolidate", run, "--output", tmp_path / "out")
    assert code == 0
    assert first.startswith("Not used: ") and "model.safetensors does not match its checksum" in first
    assert "Copied step 20 " in second


def test_what_cannot_be_copied_is_one_line_and_leaves_nothing(run, tool, tmp_path):
    """Reference: exit codes 4 of checkpoints and 2 of mistakes; the folder beside RUN is as before."""
    flip(run / "checkpoints" / "step-00000030" / "exp_avg.safetensors")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "nowhere").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    for folder, words, code, part in (
        (run, ["--output", tmp_path / "out", "--step", 30], 4, "exp_avg.safetensors does not match its checksum"),
        (run, ["--output", tmp_path / "out", "--step", 7], 4, "no checkpoint of step 7; there is 0, 10, 20, 30"),
        (run, ["--output", tmp_path / "used"], 2, "used: already there and not empty"),
        (run, ["--output", tmp_path / "file"], 2, "file: already there"),
        (run, ["--output", tmp_path / "file" / "out"], 2, "out: cannot be written (Not a directory)"),
        (tmp_path / "nowhere", ["--output", tmp_path / "out"], 2, "no config.yaml, so no run folder"),
    ):
        found, lines, [error] = tool("consolidate", folder, *words)
        assert (found, lines) == (code, [])
        assert part in error
    shutil.rmtree(run / "checkpoints")
    assert tool("consolidate", run, "--output", tmp_path / "out")[0] == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == before
