"""Snapshots: copies that later steps do not change, put together from the parts of all ranks beside the steps."""

import json
import socket

import pytest
import torch

from train.distributed import Ranks
from train.snapshot import TABLES, Piece, Snapshot

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)
LAYOUTS = ("equal_parts", "end_to_end", "all_on_one")


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("size", [2, 3])
def test_parts_of_all_ranks_become_whole_tensors_while_the_steps_go_on(start_script, free_port, size):
    """Reference: tensors that are a function of step, table and name. Three saves in a row with slow commits, the parts
    written over as soon as each is taken; layouts as those of the ZeRO stages, with empty tensors and empty parts."""
    variables = {"WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port, "CUDA_VISIBLE_DEVICES": ""}
    processes = [start_script("snapshot_worker", RANK=i, LOCAL_RANK=i, **variables) for i in range(size)]
    ended = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * size, ended
    seen = json.loads(ended[0][0])
    for layout in LAYOUTS:
        assert seen[layout] == [[step, 18, True] for step in (1, 2, 3)], layout
    assert seen["refused"].endswith("of w are not its 4 elements")


def test_memory_is_used_again_and_what_is_given_is_a_copy():
    """Reference: the addresses of the first snapshot, and the values at the time of each `take`."""
    values = tuple(torch.arange(6.0) + i for i in range(3))
    snapshot, addresses = Snapshot(ALONE, None), []
    for step in range(3):
        for value in values:
            value.fill_(step)
        snapshot.take(lambda: iter([Piece("w", torch.Size([2, 3]), 0, values)]))
        for value in values:
            value.fill_(-1)
        tables = snapshot.collect()
        assert list(tables) == list(TABLES)
        assert all(torch.equal(tables[table]["w"], torch.full((2, 3), float(step))) for table in TABLES)
        addresses.append([tables[table]["w"].data_ptr() for table in TABLES])
    assert addresses[0] == addresses[1] == addresses[2]
    assert len({*addresses[0], *(value.data_ptr() for value in values)}) == 6
