"""The ranks and their agreements: an error on one is an error on all, and nobody is left waiting."""

import json
import os
import re
import shutil
import socket

import pytest
import torch

from train.distributed import Ranks, environment, on_first_rank, start, together
from train.errors import CheckpointError, UserError

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def seen(start_script):
    """What each of three gloo processes saw."""
    size, port = 3, free_port()
    variables = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
    processes = [start_script("ranks_worker", RANK=i, LOCAL_RANK=i, **variables) for i in range(size)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, ended
    return [json.loads(output) for output, _ in ended]


def test_ranks_agree(seen):
    """Reference: sums, results and errors worked out by hand for 3 ranks."""
    size, ranks = len(seen), range(len(seen))

    def everybody(name):
        values = [rank[name] for rank in seen]
        assert all(value == values[0] for value in values), name
        return values[0]

    total = sum(ranks)
    assert everybody("world_size") == size
    assert everybody("sum") == [total, size, 2**40 * total, -total]
    assert [rank["together"] for rank in seen] == [f"of rank {i}" for i in ranks]
    assert everybody("first") == {"中文": [0, None, 0.1 + 0.2, "x" * 70_000], "rank": 0}
    assert everybody("nothing") is None
    assert everybody("one fails") == ["DataError", 3, True, f"of 中 {size - 1}"]
    assert everybody("all fail") == ["UserError", 2, True, "of 0"]
    assert everybody("two fail") == ["CheckpointError", 4, True, "of 1"]
    assert everybody("gathered") == ["中" * i for i in ranks]
    assert everybody("hosts") == [socket.gethostname()] * size
    kind, code, everywhere, words = everybody("other data")
    assert (kind, code, everywhere) == ("DataError", 3, True)
    here = socket.gethostname()
    assert words.startswith(f"data set: one for rank 0 on {here}, other for rank {size - 1} on {here}: ")
    assert everybody("same data") == []
    assert everybody("first fails") == ["CheckpointError", 4, True, "no room"]
    assert everybody("base") == ["BertmaeError", 1, True, "plain"]
    assert everybody("summed") == [[[3 * 2.0**30 + 3, total, 2 * size]]] * 2
    assert everybody("after") == [size]


def test_a_single_process_starts_whatever_the_shell_holds(run_script):
    """Reference: a world of one; a MASTER_ADDR left in a shell, without ranks, names nobody."""
    stale = {"MASTER_ADDR": "192.0.2.1", "MASTER_PORT": 1, "CUDA_VISIBLE_DEVICES": ""}
    (line,) = run_script("ranks_worker", **stale)
    seen = json.loads(line)
    assert (seen["world_size"], seen["RANK"], seen["device"]) == (1, "0", "cpu")
    assert seen["one fails"] == ["DataError", 3, True, "of 中 0"]


def test_the_tasks_of_srun_meet_without_torchrun(start_script):
    """Reference: a world of two, from the variables of a step of two tasks on one node."""
    step = {"SLURM_JOB_ID": os.getpid(), "SLURM_STEP_ID": 0, "SLURM_STEP_NUM_TASKS": 2, "SLURM_STEP_NUM_NODES": 1}
    tasks = [start_script("ranks_worker", SLURM_PROCID=i, SLURM_LOCALID=i, **step) for i in range(2)]
    ended = [json.loads(task.communicate(timeout=120)[0]) for task in tasks]
    assert [(seen["RANK"], seen["world_size"], seen["after"]) for seen in ended] == [("0", 2, [2]), ("1", 2, [2])]


@pytest.mark.skipif(shutil.which("mpiexec") is None, reason="no mpiexec on this machine")
def test_the_processes_of_a_real_mpiexec_meet(run_script):
    """Reference: a world of two, started by mpiexec itself."""
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": 1, "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": 1}
    as_root |= {"PRTE_ALLOW_RUN_AS_ROOT": 1, "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": 1}
    lines = run_script("ranks_worker", "exits", wrapper=("mpiexec", "-n", "2"), **as_root)
    ended = sorted((seen["RANK"], seen["world_size"], seen["after"]) for seen in map(json.loads, lines))
    assert ended == [("0", 2, [2]), ("1", 2, [2])]


def test_alone_the_agreements_are_what_the_action_gives():
    """Reference: the action itself."""
    assert ALONE.sum([3, -4]) == [3, -4]
    assert together(ALONE, lambda: ALONE) is ALONE
    assert on_first_rank(ALONE, lambda: [1]) == [1]

    def refuse():
        raise CheckpointError("damaged")

    for agreement in (together, on_first_rank):
        with pytest.raises(CheckpointError, match="damaged") as caught:
            agreement(ALONE, refuse)
        assert caught.value.everywhere
    with pytest.raises(ZeroDivisionError):  # our own bugs keep their traceback
        together(ALONE, lambda: 1 / 0)


def set_torchrun(monkeypatch, values):
    for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_the_environment_is_what_torchrun_says_or_a_single_process(monkeypatch):
    """Reference: torchrun's variables."""
    set_torchrun(monkeypatch, {})
    assert environment() == (0, 1, 0)
    set_torchrun(monkeypatch, {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"})
    assert environment() == (5, 8, 1)


@pytest.mark.parametrize("missing", [{"RANK"}, {"WORLD_SIZE"}, {"LOCAL_RANK"}, {"RANK", "LOCAL_RANK"}])
def test_a_part_of_torchruns_variables_is_refused_by_name(monkeypatch, missing):
    """Reference: the names that are not there."""
    set_torchrun(monkeypatch, {name: "1" for name in TORCHRUN if name not in missing})
    with pytest.raises(UserError, match=" not set beside the other torchrun variables") as caught:
        environment()
    assert set(re.findall(r"\b(?:RANK|WORLD_SIZE|LOCAL_RANK)\b", str(caught.value))) == missing


def test_variables_that_are_no_numbers_are_refused(monkeypatch):
    """Reference: int()."""
    set_torchrun(monkeypatch, {"RANK": "0", "WORLD_SIZE": "two", "LOCAL_RANK": "0"})
    with pytest.raises(UserError, match=r"must be numbers: .*two"):
        environment()


def test_several_ranks_without_an_address_are_refused_before_anybody_waits(monkeypatch):
    """Reference: torch, which would raise its own error about environment variables."""
    set_torchrun(monkeypatch, {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})
    with pytest.raises(UserError, match="MASTER_ADDR not set"):
        start()
