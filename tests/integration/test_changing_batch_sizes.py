"""Batch sizes of 8, 16 and 24 rows in one run on two gloo ranks, under ZeRO 0 to 3, with and without offload."""

import pytest
from worker_ranks import on_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks("batch_size_worker", 2, tmp_path_factory.mktemp("sizes") / "results.json")


def test_weights_and_gradients_over_changes_of_the_batch_size_equal_plain_pytorch(results):
    """Reference: one process, each update's rows in one batch, no DeepSpeed; norms relative, before clipping."""
    assert len(results["files"]) == 6
    for file, measured in results["files"].items():
        assert measured["difference"] < 1e-6, file
        assert measured["norms"] < 1e-5, file


def test_one_micro_batch_of_several_that_is_not_finite_leaves_everything_as_it_was(results):
    """Reference: the whole state before that step, at another number of micro-batches than the run began with."""
    for file, measured in results["files"].items():
        assert not measured["applied"], file
        assert measured["unchanged"], file
        assert measured["updates"] == 4, file


def test_an_engine_that_changes_its_batch_size_is_one_made_for_each_size_bit_for_bit(results):
    """Reference: in bf16, an engine for every update, started with its accumulation steps and the state so far."""
    assert results["restarted"] == {"zero1": 0, "zero2": 0, "zero3": 0}
