"""The checks before a run, each against something that is really so: a folder, a disk, links."""

import shutil

import pytest
import torch

from train.distributed import Ranks
from train.errors import DataError
from train.preflight.findings import Finding, guarded, ok, on_every_rank, warning
from train.preflight.folder import check_folder, room
from train.preflight.links import slow_links

CPU = torch.device("cpu")
ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=CPU, host_group=None, hosts_R=("here",))


def world(*hosts):
    return Ranks(rank=0, world_size=len(hosts), local_rank=0, device=CPU, host_group=None, hosts_R=hosts)


def test_a_folder_that_takes_files_is_left_as_it_was(tmp_path):
    """Reference: the folder's listing; a run folder that is not there stays away."""
    (found,) = check_folder(tmp_path / "new" / "run", ALONE)
    assert found.level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_below_a_file_is_wrong(tmp_path):
    """Reference: mkdir, which would refuse it."""
    (tmp_path / "file").write_text("")
    (found,) = check_folder(tmp_path / "file" / "run", ALONE)
    assert found.level == "wrong"
    assert "give another one" in found.text


def test_room_is_asked_for_the_checkpoints_that_are_not_there_yet(configure, tmp_path):
    """Reference: 12 bytes a parameter, times keep_last and one more, less those on the disk, against what is free."""
    config = configure(f"run.directory={tmp_path}/run", "checkpoint.keep_last=2")
    free = shutil.disk_usage(tmp_path).free
    fits, too_many = int(free * 0.9 / 36), int(free * 1.1 / 36)
    assert [room(config, count).level for count in (fits, too_many)] == ["ok", "warning"]
    for step in (1, 2):
        (tmp_path / "run" / "checkpoints" / f"step-{step}").mkdir(parents=True)
    assert room(config, too_many).level == "ok"
    assert "lower checkpoint.keep_last" in room(config, 3 * too_many).text


def test_a_link_much_slower_than_its_like_is_named_with_both_hosts():
    """Reference: five links of a GB/s and one of a tenth, from rank 2 to rank 3; and one between hosts below 1 Gbit."""
    fast = 1e9
    (found,) = slow_links(world("a", "b", "c", "d", "e", "f"), [fast, fast, fast, fast / 10, fast, fast])
    assert found.level == "warning"
    assert "slow link rank 2 on c to rank 3 on d, 0.10 GB/s" in found.text
    assert slow_links(world("a", "a", "b", "b"), [fast / 2, 10 * fast, fast / 2, 10 * fast]) == []
    assert len(slow_links(world("a", "b"), [0.05e9, 0.05e9])) == 2
    assert slow_links(world("a", "a"), [0.05e9, 0.05e9]) == []


def test_findings_say_all_that_is_not_well_and_ok_only_where_all_is():
    """Reference: the rule of on_every_rank; an expected failure is a finding, a bug keeps its traceback."""
    assert on_every_rank(ALONE, lambda: [ok("a"), ok("b")]) == [ok("a"), ok("b")]
    assert on_every_rank(ALONE, lambda: [ok("a"), warning("b")]) == [warning("b")]

    def fail():
        raise DataError("damaged")

    assert guarded(fail) == [Finding("wrong", "damaged")]
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)
