"""What a checkpoint says of its making, and that nothing it cannot know is an error."""

import json
import os
import subprocess

import pytest
import torch

from train.checkpoint import newest_whole, save_checkpoint
from train.config_file import dump_config
from train.provenance import code_version, provenance


@pytest.fixture
def git(tmp_path):
    """`git(words)` in a folder of its own."""
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    variables = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}

    def call(*words):
        done = subprocess.run(["git", *words], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
        code_version.cache_clear()
        return done.stdout.strip()

    yield call
    code_version.cache_clear()


def test_the_code_is_the_commit_that_is_checked_out(git, tmp_path):
    """Reference: git itself, with tags, and with a file that differs from the commit."""
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    git("tag", "--annotate", "v1", "--message", "x")
    commit = git("rev-parse", "HEAD")
    assert code_version(tmp_path) == f"commit {commit}"
    (tmp_path / "file").write_text("2")
    git("status")
    assert code_version(tmp_path) == f"commit {commit}-dirty"


def test_without_a_checkout_it_is_the_version_of_the_package(git, tmp_path):
    """Reference: no repository, one around the folder that holds something else, one without a commit, a broken one."""
    (tmp_path / "inner").mkdir()
    assert code_version(tmp_path).startswith("bertmae ")
    git("init", "--quiet")
    assert code_version(tmp_path / "inner").startswith("bertmae ")
    assert code_version(tmp_path).startswith("bertmae ")
    (tmp_path / "inner" / ".git").write_text("nonsense")
    code_version.cache_clear()
    assert code_version(tmp_path / "inner").startswith("bertmae ")


def test_a_checkpoint_says_what_made_it(tmp_path, configure):
    """Reference: the resolved configuration as the run folder has it, and the installed packages."""
    config = configure("run.seed=7", "objective.name=mae")
    save_checkpoint(tmp_path, 1, {}, {"tokens_seen": 3} | provenance(config), 1)
    state = json.loads(json.dumps(newest_whole(tmp_path)[0].state))
    assert dump_config(type(config).model_validate(state["config"])) == dump_config(config)
    assert (state["objective"], state["optimizer"], state["randomness"]["seed"]) == ("mae", "adamw", 7)
    assert state["versions"]["torch"] == torch.__version__
    assert state["versions"].keys() == {"python", "torch", "deepspeed", "transformers"}
    assert state["code"].startswith(("commit ", "bertmae "))
