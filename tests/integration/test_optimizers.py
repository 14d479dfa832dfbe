"""LAMB, StableAdamW and parameter groups under ZeRO 0, 1, 2, 3 and offload, on one, two and four gloo ranks."""

import pytest
from optimizers_worker import EXPECTED, PLAN, STAGES
from worker_ranks import on_ranks

RANKS = [pytest.param(1, id="one-rank"), pytest.param(2, id="two-ranks")]
RANKS += [pytest.param(4, id="four-ranks", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=RANKS)
def results(request, tmp_path_factory):
    measured = on_ranks("optimizers_worker", request.param, tmp_path_factory.mktemp("optimizers") / "results.json")
    assert measured["world_size"] == request.param
    return measured


@pytest.mark.parametrize("name", ["lamb", "stable-adamw"])
def test_twelve_updates_equal_a_slow_loop_over_whole_tensors(results, name):
    """Reference: the papers' algorithms in float64 (`optimizers_reference.py`), also where a state goes on at another
    stage; the largest difference of a weight over the largest weight of its parameter. Measured: 4e-7."""
    cases, moves = PLAN[results["world_size"]][name]
    differences = results["differences"][name]
    assert set(differences) == {*cases, *(f"{source} -> {target}" for source, target in moves)}
    for case, difference in differences.items():
        assert difference < 1e-6, f"ZeRO {case}"


def test_each_parameter_has_the_rate_and_decay_of_its_group(results):
    """Reference: a table written by hand. What two updates of AdamW do to a moving weight and to one that only decays,
    before and after a state is loaded."""
    assert set(results["effective"]) == (set(STAGES) if results["world_size"] == 2 else set())
    for case, parameters in results["effective"].items():
        assert set(parameters) == set(EXPECTED)
        for parameter, measured in parameters.items():
            for found in measured:
                assert found == pytest.approx(EXPECTED[parameter], rel=1e-3, abs=1e-9), f"ZeRO {case}: {parameter}"
