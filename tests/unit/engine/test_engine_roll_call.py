"""Nodes whose launcher does not come are named by the first node, and nobody else."""

import time
from datetime import timedelta

from torch.distributed import TCPStore

from train import roll_call
from train.roll_call import call_the_roll, missing


def test_the_node_that_does_not_come_is_named_by_the_first_one(capfd, monkeypatch):
    """Reference: three nodes of SLURM, of which the third is never started; the store is as torchrun holds it."""
    monkeypatch.setattr(roll_call, "_PATIENCE", 0.0)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    hosts = ["n1", "n2", "n3"]
    for node in ("1", "0"):
        variables = {"SLURM_NODEID": node, "SLURM_JOB_NODELIST": "n[1-3]"}
        call_the_roll(f"127.0.0.1:{store.port}", "17-0", variables)
        end = time.monotonic() + 30
        while hosts[int(node)] in missing(store, "17-0", hosts):
            assert time.monotonic() < end
            time.sleep(0.01)
    assert missing(store, "17-0", hosts) == ["n3"]
    assert missing(store, "17-1", hosts) == hosts, "another start of the job"
    said = ""
    while "n3" not in said:
        assert time.monotonic() < end
        time.sleep(0.05)
        said += capfd.readouterr().err
    assert said.startswith("bertmae: still waiting for node n3: no launcher") and said.count("\n") == 1


def test_without_slurm_nobody_is_called():
    """Reference: an endpoint that does not exist, at which nobody looks."""
    call_the_roll("nowhere.invalid:1", "none", {})
    call_the_roll("", "none", {"SLURM_NODEID": "0", "SLURM_JOB_NODELIST": "n1"})
