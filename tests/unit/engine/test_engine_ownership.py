"""Of two starts that write in one run folder the older one notices and ends."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from train import ownership
from train.errors import UserError
from train.ownership import own, refuse_another

ROOT = Path(__file__).parents[3]


@pytest.fixture
def older(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Another process that holds the folder, with the given variables."""
    begun: list[subprocess.Popen[str]] = []

    def begin(**variables: str) -> subprocess.Popen[str]:
        program = [sys.executable, str(Path(__file__).with_name("owner_worker.py")), str(tmp_path)]
        environment = os.environ | variables | {"PYTHONPATH": str(ROOT)}
        begun.append(
            subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
        assert begun[-1].stdout.readline() == "holds\n"
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def is_start(monkeypatch, job: str, start: int) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", job)
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(start))


def test_a_later_start_of_the_job_takes_the_folder_and_the_older_one_ends(older, monkeypatch, tmp_path):
    """Reference: the older process, which holds the lock and would keep it for minutes: code 2, and who has it now."""
    process = older(SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1")
    is_start(monkeypatch, "7", 2)
    with own(tmp_path):
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 2
        assert f"taken over by start 3 of job 7, process {os.getpid()} on" in said
        owner = json.loads((tmp_path / "owner.json").read_text())
        assert (owner["number"], owner["start"], owner["process"]) == (2, 2, os.getpid())
        refuse_another(tmp_path)


def test_an_older_start_of_the_job_is_refused_at_once(monkeypatch, tmp_path):
    """Reference: what the later one has written, which stays."""
    is_start(monkeypatch, "7", 2)
    own(tmp_path).close()
    before = (tmp_path / "owner.json").read_text()
    is_start(monkeypatch, "7", 1)
    with pytest.raises(UserError, match=r"belongs to start 3 of job 7.* than this one \(start 2 of job 7"):
        own(tmp_path)
    assert (tmp_path / "owner.json").read_text() == before


def test_a_start_of_another_job_waits_for_the_lock_and_takes_nothing(older, monkeypatch, tmp_path):
    """Reference: the process that trains, which goes on."""
    process = older(SLURM_JOB_ID="7")
    is_start(monkeypatch, "8", 0)
    monkeypatch.setattr(ownership, "lock", lambda run: ownership_lock(run, 0.0))
    with pytest.raises(UserError, match="another process is training"):
        own(tmp_path)
    assert process.poll() is None
    assert json.loads((tmp_path / "owner.json").read_text())["job"] == "7"


ownership_lock = ownership.lock


def test_where_locks_do_not_hold_the_older_process_notices(older, monkeypatch, tmp_path):
    """Reference: a file system without locks between machines: the lock's file is another one for each."""
    process = older()
    (tmp_path / ".lock").unlink()
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with own(tmp_path):
        assert "taken over by process" in process.communicate(timeout=30)[0]
        assert process.returncode == 2


@pytest.mark.parametrize("text", ["", "[]", '{"start": "soon"}', '{"start": 1'])
def test_a_file_that_says_nothing_is_written_anew(monkeypatch, tmp_path, text):
    """Reference: the first owner of an empty folder."""
    (tmp_path / "owner.json").write_text(text)
    with own(tmp_path):
        assert json.loads((tmp_path / "owner.json").read_text())["number"] == 1


def test_a_checkpoint_is_not_committed_over_another_owner(tmp_path):
    """Reference: the file as another start leaves it."""
    with own(tmp_path):
        owner = json.loads((tmp_path / "owner.json").read_text())
        (tmp_path / "owner.json").write_text(json.dumps(owner | {"host": "elsewhere", "number": 9}))
        with pytest.raises(UserError, match=r"taken over by .* on elsewhere"):
            refuse_another(tmp_path)
        (tmp_path / "owner.json").write_text(json.dumps(owner))
