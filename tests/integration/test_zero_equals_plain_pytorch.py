"""ZeRO 0, 1, 2, 3, with offload and without, on one and two gloo ranks against plain PyTorch, in fp32.

The model has an embedding that is tied to two losses, non-reentrant checkpointing, accumulation 2 and clipping.
"""

import pytest
from worker_ranks import on_ranks


@pytest.fixture(scope="module", params=[1, 2], ids=["one-rank", "two-ranks"])
def results(request, tmp_path_factory):
    measured = on_ranks("zero_worker", request.param, tmp_path_factory.mktemp("zero") / "results.json")
    assert measured["world_size"] == request.param
    return measured


def test_weights_after_five_updates_equal_plain_pytorch(results):
    """Reference: the single process, which never met the NaN that was left out on the way."""
    assert len(results["files"]) == 8
    for file, measured in results["files"].items():
        assert measured["difference"] < 1e-6, f"zero{file}.json"
        assert measured["updates"] == 5


def test_gradient_norms_equal_plain_pytorch(results):
    """Reference: clip_grad_norm_ of the single process; relative difference of the norm before clipping."""
    for file, measured in results["files"].items():
        assert measured["norms"] < 1e-5, f"zero{file}.json"


def test_norms_of_the_parts_of_the_model_are_those_of_whole_gradients_before_clipping(results):
    """Reference: the gradients of the single process, parameter by parameter, in the same steps; none is measured where
    nobody asks, nor of an update left out. The root of the sum of their squares is the norm of the whole."""
    for file, measured in results["files"].items():
        assert [sorted(parts) for parts in measured["parts"]] == [
            ["decoder", "embeddings", "encoder", "heads"] if update != 2 else [] for update in range(5)
        ]
        assert measured["parts_of_poison"] == []
        steps = zip(measured["parts"], measured["parts_of_plain"], measured["own_norms"], strict=True)
        for parts, plain, whole in (step for step in steps if step[0]):
            assert parts == pytest.approx(plain, rel=1e-5), f"zero{file}.json"
            assert sum(norm**2 for norm in parts.values()) ** 0.5 == pytest.approx(whole, rel=1e-5)
        assert min(measured["own_norms"]) > 1.0, "all are clipped, or the norms before it are those behind it"


def test_measuring_the_parts_changes_no_bit(results):
    """Reference: the weights and moments after three updates of an engine that never measures."""
    assert all(measured["same_unmeasured"] for measured in results["files"].values())


def test_state_moves_between_files_bit_for_bit_and_goes_on_the_same(results):
    """Reference: the single process, undisturbed. State read after loading equals what was loaded, the updates count
    on, and weights decay as before."""
    assert len(results["moves"]) == 8
    for move, measured in results["moves"].items():
        assert measured["kept"], move
        assert measured["difference"] < 1e-6, move
        assert measured["updates"] == 5


def test_a_gradient_that_is_not_finite_changes_nothing(results):
    """Reference: the state before."""
    for file, measured in results["files"].items():
        assert not measured["applied"], f"zero{file}.json"
        assert measured["unchanged"], f"zero{file}.json"
