"""The loss is a global sum over a global count: how a batch is cut into ranks and micro-batches changes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_every_split_equal_those_of_the_whole_batch(world_size, tmp_path):
    """Reference: autograd on the batch in one piece. 1, 2 and 8 micro-batches on each of 1, 2 and 4 gloo ranks, some of
    them without a target; the first moment of AdamW, which is the gradient times 1 - beta."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    worker, output = Path(__file__).with_name("split_worker.py"), tmp_path / "results.json"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*torchrun, str(worker), str(output)], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    measured = json.loads(output.read_text())
    assert len(measured) == 9
    for case, difference in measured.items():
        assert difference < 1e-6, case
