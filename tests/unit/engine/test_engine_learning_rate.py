"""The learning rate as a function of the step, against tables written out by hand and a slow closed form."""

import math
from itertools import pairwise

import pytest

from train.config import decay_steps
from train.optimizer import learning_rate

PEAK = 0.08

# The rate of every update in units of the peak. 12 steps; final ratio 0.25 where the shape reaches it.
BY_HAND = {
    # 4 steps of warm-up, then 8 equal steps of 0.75/8 down to the final ratio
    ("linear", 4): [1 / 4, 2 / 4, 3 / 4, 1, 0.90625, 0.8125, 0.71875, 0.625, 0.53125, 0.4375, 0.34375, 0.25],
    # no warm-up: the very first update is one step down
    ("linear", 0): [0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5, 0.4375, 0.375, 0.3125, 0.25],
    # warm-up only
    ("linear", 12): [i / 12 for i in range(1, 13)],
    ("constant", 4): [1 / 4, 2 / 4, 3 / 4] + [1] * 9,
    ("constant", 0): [1] * 12,
    # cos at 22.5, 45, ... 180 degrees
    ("cosine", 4): [1 / 4, 2 / 4, 3 / 4, 1]
    + [0.25 + 0.375 * (1 + c) for c in (0.9238795325, 0.7071067812, 0.3826834324, 0)]
    + [0.25 + 0.375 * (1 - c) for c in (0.3826834324, 0.7071067812, 0.9238795325, 1)],
    # the last 3 steps fall by a quarter of the peak each
    ("warmup_stable_decay", 4): [1 / 4, 2 / 4, 3 / 4] + [1] * 6 + [0.75, 0.5, 0.25],
    ("warmup_stable_decay", 0): [1] * 9 + [0.75, 0.5, 0.25],
    ("warmup_stable_decay", 9): [i / 9 for i in range(1, 10)] + [0.75, 0.5, 0.25],
}


def rates(config):
    return [learning_rate(step, config) for step in range(config.run.steps)]


def schedule(configure, name, steps, warmup, *more):
    return configure(
        f"run.steps={steps}",
        f"optimizer.learning_rate={PEAK}",
        f"schedule.name={name}",
        f"schedule.warmup_steps={warmup}",
        *more,
    )


@pytest.mark.parametrize(("name", "warmup"), BY_HAND)
def test_every_update_has_the_rate_written_out_by_hand(configure, name, warmup):
    """Reference: the table above."""
    more = ["schedule.decay_steps=3"] if name == "warmup_stable_decay" else []
    config = schedule(configure, name, 12, warmup, "schedule.final_learning_rate_ratio=0.25", *more)
    assert rates(config) == pytest.approx([PEAK * share for share in BY_HAND[name, warmup]], rel=1e-9)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "warmup_stable_decay"])
@pytest.mark.parametrize(("steps", "warmup"), [(50, 0), (50, 1), (50, 45), (50, 10), (1000, 100), (3, 1)])
@pytest.mark.parametrize("final", [0.0, 0.1, 1.0])
def test_a_schedule_starts_above_zero_peaks_when_the_warmup_ends_and_ends_at_its_final_ratio(
    configure, name, steps, warmup, final
):
    """Reference: the sentences of the configuration, exactly, not approximately."""
    config = schedule(configure, name, steps, warmup, f"schedule.final_learning_rate_ratio={final}")
    found = rates(config)
    assert found[0] > 0
    assert max(found) <= PEAK
    if warmup:
        assert found[warmup - 1] == PEAK
        assert all(a < b for a, b in pairwise(found[:warmup]))
    after = found[max(warmup - 1, 0) :]
    assert all(a >= b for a, b in pairwise(after))
    assert found[-1] == (PEAK if name == "constant" else PEAK * final)


def test_without_decay_steps_a_tenth_of_the_run_decays(configure):
    """Reference: the constant part counted by hand."""
    config = schedule(configure, "warmup_stable_decay", 200, 10)
    assert decay_steps(config) == 20
    assert [rate == PEAK for rate in rates(config)] == [False] * 9 + [True] * 171 + [False] * 20


def test_a_step_beyond_the_run_stays_at_the_final_rate(configure):
    """Reference: the rate of the last step."""
    for name in ("linear", "cosine", "warmup_stable_decay"):
        config = schedule(configure, name, 40, 4, "schedule.final_learning_rate_ratio=0.5")
        assert {learning_rate(step, config) for step in (39, 40, 41, 10_000)} == {PEAK / 2}


def test_the_cosine_is_half_a_period(configure):
    """Reference: the closed form with the number of updates after the warm-up as time."""
    config = schedule(configure, "cosine", 300, 30)
    for update in range(30, 300):
        share = 0.5 * (1 + math.cos(math.pi * (update - 29) / 270))
        assert learning_rate(update, config) == pytest.approx(PEAK * share, abs=1e-15)
