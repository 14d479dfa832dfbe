"""The script of a SLURM job, and mistakes that no cluster is needed for."""

import subprocess
from pathlib import Path

import pytest

from train import submit as module
from train.__main__ import main
from train.config_file import load_config
from train.errors import UserError
from train.submit import Job, script, submit

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


@pytest.fixture
def config(tmp_path):
    return load_config(DEMO, ["data.path=nowhere", f"run.directory={tmp_path}/a run"])


def test_the_script_is_bash_and_holds_every_option_once(config, tmp_path):
    """Reference: bash's own reading of it, and the options of the script that it comes from."""
    job = Job(3, 4, None, "1-00:00:00", 120, ("--account=me", "--exclusive"))
    text = script(config, job, tmp_path / "a run" / "slurm")
    assert subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).stderr == ""
    options = [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]
    names = [option.partition("=")[0] for option in options]
    assert len(set(names)) == len(names)
    template = [line.split()[1].partition("=")[0] for line in module._template().splitlines() if "#SBATCH " in line]
    assert set(template) <= set(names)
    wanted = {"--nodes=3", "--gpus-per-node=4", "--signal=B:USR1@120", "--job-name=a-run", "--account=me"}
    assert wanted <= set(options)
    assert f"set -- '{tmp_path}/a run/slurm/config.yaml'" in text


def test_a_dry_run_writes_nothing(config, tmp_path):
    """Reference: the empty folder, and the script that a submission would write."""
    job = Job(2, 0, 3, "2:00:00", 180)
    said = "\n".join(submit(config, job, dry_run=True))
    assert script(config, job, tmp_path / "a run" / "slurm") in said
    assert (
        "2 nodes x 3 processes = 6 ranks" in said and "NPROC=3" in said and "gpus-per-node" not in said.split("\n\n")[0]
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("2:30", 150), ("1:00:00", 3600), ("1-12", 129600), ("0-1:30", 5400), ("1-00:00:01", 86401)],
)
def test_times_are_read_as_slurm_reads_them(time, seconds):
    """Reference: the list of forms in sbatch's manual."""
    assert module._seconds(time) == seconds


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (Job(1, 8, None, "3", 180), "no time is left to train"),
        (Job(1, 8, None, "a day", 180), "no time that SLURM knows"),
        (Job(1, 8, None, "1:00:00", 180, ("--account me",)), "holds a blank"),
    ],
)
def test_what_cannot_be_right_is_one_line(config, job, words):
    """Reference: the way out in the message; nothing is asked of SLURM."""
    with pytest.raises(UserError, match=words):
        list(submit(config, job, dry_run=True))


def test_a_machine_without_sbatch_is_one_line(config, monkeypatch, tmp_path):
    """Reference: an empty search path."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="sbatch: no such program"):
        list(submit(config, Job(1, 8, None, "1:00:00", 180), dry_run=False))


def test_overrides_may_stand_behind_the_options(tmp_path, capsys):
    """Reference: the same command with them in front; a word that is none is still refused by name."""
    options = ["--time", "2:00:00", "--nodes", "2", "--gpus-per-node", "0", "--dry-run"]
    overrides = ["data.path=nowhere", f"run.directory={tmp_path}/run"]
    assert main(["submit", str(DEMO), *overrides, *options]) == 0
    before = capsys.readouterr().out
    assert main(["submit", str(DEMO), overrides[0], *options, overrides[1]]) == 0
    assert capsys.readouterr().out == before and f"{tmp_path}/run" in before
    for word in ("--cards=3", "three"):
        with pytest.raises(SystemExit):
            main(["submit", str(DEMO), *overrides, *options, word])
        assert f"unrecognized arguments: {word}" in capsys.readouterr().err
