"""A run that is killed again and again, by kill -9 of a rank, of torchrun, of everything: two gloo ranks, dropout on.

benchmarks/chaos.py is the same with every target at every moment.
"""

import random
import shutil
from pathlib import Path

import pytest
from chaos import SETTINGS, Kill, differences, run_killed, run_undisturbed

STEPS = 40
KILLS = [
    Kill("torchrun", "ranks begin"),
    Kill("everything", "lock, plan"),
    Kill("rank 0", "tensors are written"),
    Kill("torchrun", "engine, loading"),
    Kill("everything", "rename"),
    Kill("rank 1", "validation"),
    Kill("torchrun", "snapshot"),
    Kill("everything", "last latest"),
]

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the processes")


def test_a_run_killed_anywhere_goes_on_to_the_same_end(tiny, shards, tmp_path):
    """Reference: the undisturbed run, bit for bit; each step once in every file; goodput.json knows all the time."""
    own = shutil.copytree(shards, tmp_path / "shards", ignore=shutil.ignore_patterns("plans"))
    words = [*tiny, f"data.path={own}", *SETTINGS]
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    starts = run_killed(killed, words, STEPS, KILLS, random.Random(0))
    run_undisturbed(undisturbed, words, STEPS)
    assert [start.kill for start in starts] == [*KILLS, None], "the run was over before all kills"
    assert differences(starts, undisturbed) == []
    assert not list(own.rglob(".*.partial")), "a packing plan is half done"
