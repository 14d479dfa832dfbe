"""Commits beside training: one at a time, errors told to everybody, and which checkpoints stay."""

import errno
import json
import os
import threading
import time

import pytest
import torch

from train.checkpoint import is_full, lowest_loss, save_checkpoint
from train.distributed import Ranks
from train.errors import CheckpointError
from train.saving import Saves

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)


def refused(code):
    """The error of a checkpoint that the system refuses with `code`, as save_checkpoint raises it."""
    error = CheckpointError("step-00000001: cannot write the checkpoint")
    error.__cause__ = OSError(code, os.strerror(code))
    return error


def failing(error):
    def commit():
        raise error

    return commit


@pytest.fixture
def saves():
    saves = Saves()
    yield saves
    saves.close()


def test_a_commit_goes_on_beside_the_caller(saves):
    """Reference: a commit that cannot end before its caller goes on."""
    go = threading.Event()
    saves.begin(ALONE, 3, lambda: str(go.wait(10)))
    assert (saves.step, saves.has_ended) == (3, False)
    go.set()
    assert saves.end(ALONE, last=False) == (3, "True")
    assert (saves.step, saves.has_ended) == (None, False)
    assert saves.end(ALONE, last=True) is None


def test_an_ended_commit_is_seen_without_waiting(saves):
    """Reference: `end`, which waits."""
    saves.begin(ALONE, 3, lambda: "path")
    deadline = time.monotonic() + 10
    while not saves.has_ended and time.monotonic() < deadline:
        time.sleep(0.001)
    assert saves.has_ended
    assert saves.end(ALONE, last=False) == (3, "path")


def test_a_second_commit_beside_the_first_is_refused(saves):
    """Reference: at most one at a time."""
    saves.begin(ALONE, 3, lambda: "path")
    with pytest.raises(RuntimeError, match="step 3 is under way"):
        saves.begin(ALONE, 4, lambda: "path")


@pytest.mark.parametrize(
    ("code", "last", "is_raised"),
    [
        (errno.ENOSPC, False, False),
        (errno.EDQUOT, False, False),
        (errno.ENOSPC, True, True),
        (errno.EACCES, False, True),
        (errno.EIO, False, True),
    ],
)
def test_only_a_full_disk_before_the_end_is_no_error(saves, code, last, is_raised):
    """Reference: the reasons that may pass while the run goes on."""
    saves.begin(ALONE, 3, failing(refused(code)))
    if is_raised:
        with pytest.raises(CheckpointError):
            saves.end(ALONE, last=last)
    else:
        assert saves.end(ALONE, last=last) == (3, None)
    saves.begin(ALONE, 4, lambda: "path")
    assert saves.end(ALONE, last=True) == (4, "path")


def test_a_bug_in_a_commit_keeps_its_own_class(saves):
    """Reference: the exception that was raised in the thread."""
    saves.begin(ALONE, 3, failing(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        saves.end(ALONE, last=False)


def test_closing_waits_for_the_commit_under_way(saves, tmp_path):
    """Reference: the file that the commit writes last."""

    def commit():
        time.sleep(0.2)
        return str((tmp_path / "done").write_text("x"))

    saves.begin(ALONE, 3, commit)
    saves.close()
    assert (tmp_path / "done").exists()


def test_only_the_rank_that_writes_tells_that_a_commit_has_ended(saves):
    """Reference: the others have sent their parts long before; would they tell, all ranks would wait for the disk."""
    other = Ranks(rank=1, world_size=1, local_rank=1, device=torch.device("cpu"), host_group=None)
    sent = threading.Event()
    saves.begin(other, 3, lambda: str(sent.set()))
    assert sent.wait(10)
    time.sleep(0.05)
    assert not saves.has_ended
    assert saves.end(other, last=False) == (3, None)


def test_a_clock_that_somebody_sets_moves_no_interval(saves, monkeypatch):
    """Reference: the time that passes in this test."""
    for jump in (-1e9, 1e9):
        monkeypatch.setattr(time, "time", lambda jump=jump: jump)
        assert 0 <= saves.minutes_since_last() * 60 < 30


def test_the_clock_begins_anew_with_every_commit(saves):
    """Reference: the time that passes in this test."""
    time.sleep(0.1)
    assert 0.1 <= saves.minutes_since_last() * 60 < 30
    saves.begin(ALONE, 3, lambda: "path")
    assert saves.minutes_since_last() * 60 < 0.1


def test_full_disks_are_told_from_other_refusals():
    """Reference: the codes of the system, bare and behind an error that names them."""
    assert all(is_full(error) for error in (refused(errno.ENOSPC), OSError(errno.EDQUOT, "x")))
    assert not any(is_full(error) for error in (refused(errno.EACCES), CheckpointError("x"), None))


# ---------------------------------------------------------------------------------------------------------------------
# Which ones stay


def save(folder, step, loss=None, **keep):
    state = {} if loss is None else {"validation_loss": loss}
    return save_checkpoint(folder, step, {"model": {"w": torch.tensor(float(step))}}, state, 1, **keep)


def steps_in(folder):
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_every_kth_step_is_kept_for_good(tmp_path):
    """Reference: the multiples of k, and the newest one; step 0 is what the run starts from."""
    for step in range(0, 60, 5):
        save(tmp_path, step, keep_every=20)
    assert steps_in(tmp_path) == [20, 40, 55]


def test_the_best_one_is_kept_and_named(tmp_path):
    """Reference: the losses, written down: the lowest finite one, the older of two equal ones, None not counting."""
    losses = {1: 5.0, 2: None, 3: 3.0, 4: float("nan"), 5: 4.0, 6: 3.0, 7: 2.0, 8: float("-inf"), 9: 2.5}
    named = []
    for step, loss in losses.items():
        save(tmp_path, step, loss, keep_best=True)
        named.append(int((tmp_path / "best").read_text().removeprefix("step-")))
        assert steps_in(tmp_path) == sorted({step, named[-1]})
    assert named == [1, 1, 3, 3, 3, 3, 7, 7, 7]


def test_the_best_is_found_though_the_process_died_before_it_was_named(tmp_path):
    """Reference: the states of the checkpoints, which alone decide."""
    save(tmp_path, 1, 5.0, keep_best=True)
    save(tmp_path, 2, 3.0)  # `best` still names step 1
    assert (tmp_path / "best").read_text() == "step-00000001\n"
    assert lowest_loss(tmp_path, 2) == (3.0, "step-00000002")
    save(tmp_path, 3, 4.0, keep_best=True)
    assert (tmp_path / "best").read_text() == "step-00000002\n"


def test_damaged_and_later_checkpoints_are_not_the_best(tmp_path):
    """Reference: the one that is left."""
    for step, loss in ((1, 5.0), (2, 1.0), (3, 2.0), (4, 3.0)):
        save_checkpoint(tmp_path, step, {}, {"validation_loss": loss}, 10)
    (tmp_path / "step-00000002" / "manifest.json").unlink()
    (tmp_path / "step-00000003" / "state.json").write_text("{")
    assert lowest_loss(tmp_path, 9) == (3.0, "step-00000004")
    assert lowest_loss(tmp_path, 3) == (5.0, "step-00000001")
    assert lowest_loss(tmp_path, 0) is None


def test_a_checkpoint_that_nobody_measured_has_no_loss(tmp_path):
    """Reference: the state that is written."""
    path = save(tmp_path, 1, keep_best=True)
    assert json.loads((path / "state.json").read_text()) == {"step": 1}
    assert not (tmp_path / "best").exists()
