"""A user's mistake is one clear line on stderr and an exit code, without a traceback, before anything is trained."""

import json

import pytest
from e2e_commands import ROOT, command


def one_line(done, code: int) -> str:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stderr


def test_a_mistyped_key_is_named_with_the_nearest_one(tiny, tmp_path):
    done = command("train", "pretrain", *tiny, f"run.directory={tmp_path}/run", "optimizer.learning_rat=1e-3")
    line = one_line(done, 2)
    assert "optimizer.learning_rat" in line and "did you mean learning_rate?" in line
    assert not (tmp_path / "run").exists()


def test_the_same_under_torchrun_with_two_ranks_is_still_one_line(tiny, tmp_path):
    words = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
    done = command(*words, *tiny, f"run.directory={tmp_path}/run", "optimizer.learning_rat=1e-3")
    assert "did you mean learning_rate?" in one_line(done, 2)


def test_a_first_rank_that_starts_late_still_says_it(tiny, tmp_path, monkeypatch):
    """torchrun ends all ranks when the first one fails: the others leave the time to name the mistake to rank 0."""
    late = "import os, time\ntime.sleep(3 if os.environ.get('RANK') == '0' else 0)\n"
    (tmp_path / "sitecustomize.py").write_text(late)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
    done = command(*words, *tiny, f"run.directory={tmp_path}/run", "optimizer.learning_rat=1e-3")
    assert "did you mean learning_rate?" in one_line(done, 2)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.path=/nowhere/at/all", "/nowhere/at/all: no such folder"),
        ("run.directory=/dev/null/run", "run.directory /dev/null/run: cannot be written"),
        ("engine.ds_config=ds_configs/zero9.json", "engine.ds_config ds_configs/zero9.json"),
        ("batch.global_batch_size=9", "batch.global_batch_size 9 is not divisible"),
    ],
)
def test_a_bad_value_names_the_thing_and_the_way_out(tiny, tmp_path, override, words):
    done = command("train", "pretrain", *tiny, f"run.directory={tmp_path}/run", override)
    assert words in one_line(done, 2)


def test_a_global_batch_that_the_ranks_cannot_share_names_the_nearest_sizes(tiny, tmp_path):
    words = ["train", "launch", "--nproc-per-node", 2, "pretrain", *tiny, f"run.directory={tmp_path}/run"]
    done = command(*words, "batch.micro_batch_size=1", "batch.global_batch_size=5")
    assert "4 or 6" in one_line(done, 2)


def test_a_run_folder_of_another_model_is_refused_with_both_values(tiny, tmp_path):
    here = [*tiny, f"run.directory={tmp_path}/run", "run.steps=5"]
    assert command("train", "pretrain", *here).returncode == 0
    line = one_line(command("train", "pretrain", *here, "model.encoder.hidden_size=64"), 2)
    assert "model.encoder.hidden_size = 32" in line and "64" in line


def test_a_damaged_shard_is_named_with_exit_code_3(tiny, shards, tmp_path):
    import shutil

    broken = shutil.copytree(shards, tmp_path / "shards")
    shard = next(broken.glob("train-*.tar"))
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    done = command("train", "pretrain", *tiny, f"data.path={broken}", f"run.directory={tmp_path}/run")
    assert shard.name in one_line(done, 3)


def test_a_misspelt_key_inside_the_zero_section_is_named(tiny, tmp_path):
    """DeepSpeed itself refuses it; what it says becomes one line."""
    ds_config = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    ds_config["zero_optimization"]["overlap_com"] = True
    (tmp_path / "ds.json").write_text(json.dumps(ds_config))
    done = command("train", "pretrain", *tiny, f"run.directory={tmp_path}/run", f"engine.ds_config={tmp_path}/ds.json")
    assert "overlap_com" in one_line(done, 2)
