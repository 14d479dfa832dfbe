"""fp16 with a dynamic loss scale under ZeRO 1 and 2, on two gloo ranks."""

import pytest
from worker_ranks import on_ranks


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return on_ranks("fp16_worker", 2, tmp_path_factory.mktemp("fp16") / "results.json")


@pytest.mark.parametrize("stage", ["1", "2"])
def test_fp16_follows_fp32(results, stage):
    """Reference: the same rows in fp32: gradient norms within 2 %, weights within 5 % of the way they went."""
    measured = results["stages"][stage]
    assert measured["norms"] < 0.02
    assert measured["far"] < 0.05


@pytest.mark.parametrize("stage", ["1", "2"])
def test_an_update_behind_which_the_scale_grows_has_its_whole_gradient(results, stage):
    """Reference: AdamW's first moment in fp32, update by update, without clipping; the scale grows in two of these.
    DeepSpeed 0.19.8 divides by the new scale there: the gradient would be half, and the moment 12 % less."""
    measured = results["stages"][stage]
    assert measured["scales"][-1] == 4 * measured["scales"][0]
    assert measured["moments"] == pytest.approx(results["moments"], rel=0.02)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_norms_of_the_parts_make_up_the_whole_also_where_the_scale_grows(results, stage):
    """Reference: the norm that DeepSpeed reports of each update; the scale grows in some of these."""
    measured = results["stages"][stage]
    assert measured["norms_by_parts"] == pytest.approx(measured["own_norms"], rel=1e-4)


@pytest.mark.parametrize("stage", ["1", "2"])
def test_a_scale_that_is_too_large_is_halved_until_gradients_fit_and_no_such_update_is_applied(results, stage):
    """Reference: the rule of dynamic loss scaling, step by step: halved at an overflow, doubled by the
    next update after four good ones."""
    steps = results["stages"][stage]["steps"]
    scale, good = 2.0**22, 0
    assert {applied for _, applied, _ in steps} == {0, 1} and steps[0][1] == 0
    for updates, applied, after in steps:
        assert updates == applied
        if not applied:
            scale, good = scale / 2, 0
        else:
            good += 1
            scale = scale * 2 if good > 1 and good % 4 == 1 else scale
        assert after == scale


@pytest.mark.parametrize("stage", ["1", "2"])
def test_going_on_in_the_middle_changes_no_bit(results, stage):
    """Reference: the undisturbed run; the new engine was started with another scale."""
    assert results["stages"][stage]["same"]


def test_a_device_without_fp16_is_one_clear_line(results):
    """Reference: the sentence a user should read; where the device has fp16 nothing is refused."""
    assert results["refused"] in ("nothing", "engine.precision fp16: this device has no fp16; use bf16 or fp32")
