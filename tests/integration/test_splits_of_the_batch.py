"""The loss is a global sum over a global count: how a batch is cut into ranks and micro-batches changes nothing."""

import pytest
from worker_ranks import on_ranks


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_of_every_split_equal_those_of_the_whole_batch(world_size, tmp_path):
    """Reference: autograd on the batch in one piece. 1, 2 and 8 micro-batches on each of 1, 2 and 4 gloo ranks, some of
    them without a target; the first moment of AdamW, which is the gradient times 1 - beta."""
    measured = on_ranks("split_worker", world_size, tmp_path / "results.json")
    assert len(measured) == 9
    for case, difference in measured.items():
        assert difference < 1e-6, case
