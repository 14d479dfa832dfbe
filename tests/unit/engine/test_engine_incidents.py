"""Loss spikes, the way back from them, and what an incident says of fp16's loss scale."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from train.checkpoint import newest_whole, save_checkpoint
from train.config import Incidents
from train.errors import UserError
from train.monitor.spikes import Spike, SpikeRule
from train.rewind import Decisions, batch_of, carry_out, decide, forget, jumps, last_applied, with_batches

SETTINGS = Incidents(spike_deviations=6.0, spike_window=20, spike_warmup_steps=30)


def spikes(losses: list[float], limits: Incidents = SETTINGS) -> list[int]:
    rule = SpikeRule()
    return [step for step, loss in enumerate(losses, start=1) if rule.judge(step, loss, limits)]


def slow_spikes(losses: list[float], limits: Incidents) -> list[int]:
    """The formula of the field descriptions, from the whole past at every step."""
    found = []
    for step in range(1, len(losses) + 1):
        past = [loss for loss in losses[:step] if math.isfinite(loss)]
        a, n = 2 / (limits.spike_window + 1), limits.spike_deviations
        mean, variance, is_spike = past[0] if past else 0.0, 0.0, False
        for loss in past:
            deviation = max(variance**0.5, mean / 1000)
            is_spike = loss > mean + n * deviation
            d = min(loss, mean + n / 2 * deviation) - mean
            mean, variance = mean + a * d, (1 - a) * (variance + a * d**2)
        if is_spike and math.isfinite(losses[step - 1]) and len(past) > limits.spike_warmup_steps:
            found.append(step)
    return found


@settings(deadline=None)
@given(st.integers(0, 10_000))
def test_the_rule_is_the_documented_formula(seed):
    """Reference: the formula applied to the whole past, over noise with jumps, a level that changes, NaN."""
    rng = np.random.default_rng(seed)
    losses = 3 + 0.1 * rng.standard_normal(90)
    losses[rng.integers(20, 90, 4)] += rng.choice([0.5, 2.0, 50.0], 4)
    losses[70:] += rng.choice([0, 1])
    losses[rng.integers(0, 90)] = math.nan
    assert spikes(losses.tolist()) == slow_spikes(losses.tolist(), SETTINGS)


def test_a_training_curve_without_spikes_has_none_and_a_real_one_is_found():
    """Reference: by construction: a curve from 10 down to 2 with noise of 2 %, then the same with a bump of 0.5."""
    rng = np.random.default_rng(1)
    losses = (2 + 8 * np.exp(-np.arange(20_000) / 1500)) * (1 + 0.02 * rng.standard_normal(20_000))
    defaults = Incidents()
    assert spikes(losses.tolist(), defaults) == []
    losses[15_000:15_004] += 0.5
    assert spikes(losses.tolist(), defaults) == [15_001, 15_002, 15_003, 15_004]
    assert spikes(losses.tolist(), Incidents(spike_deviations=None)) == []


def test_a_loss_that_stays_at_a_new_level_is_soon_expected():
    """Reference: no spike any more some steps after the jump."""
    rng = np.random.default_rng(2)
    losses = np.concatenate([np.full(300, 2.0), np.full(300, 9.0)]) + 0.05 * rng.standard_normal(600)
    found = spikes(losses.tolist(), Incidents())
    assert found[0] == 301 and found[-1] < 350


@pytest.mark.parametrize("at", [1, 29, 57, 63])
def test_the_rule_goes_on_bit_for_bit_over_a_restart(at):
    """Reference: the rule that was never stopped; the state goes by way of a checkpoint's JSON."""
    rng = np.random.default_rng(3)
    losses = (3 + 0.1 * rng.standard_normal(90)).tolist()
    losses[60] = losses[62] = 7.0
    whole, rule = SpikeRule(), SpikeRule()
    expected = [whole.judge(step, loss, SETTINGS) for step, loss in enumerate(losses)]
    assert sum(spike is not None for spike in expected) == 2
    found = []
    for step, loss in enumerate(losses):
        if step == at:
            rule = SpikeRule.of(json.loads(json.dumps(rule.state())))
        found.append(rule.judge(step, loss, SETTINGS))
    assert found == expected
    assert rule == whole


# ---------------------------------------------------------------------------------------------------------------------
# Which batches are read


def slow_order(skipped: set[int], steps: int) -> list[int]:
    """The number of the batch of each step."""
    return [number for number in range(steps + len(skipped)) if number not in skipped][:steps]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), max_size=4))
def test_decisions_one_after_another_leave_out_exactly_the_batches_of_their_steps(decisions):
    """Reference: a list of all batches, from which each decision takes what the steps named by it have read."""
    skipped, removed = (), set()
    for first, more in decisions:
        order = slow_order(removed, 100)
        removed |= set(order[first - 1 : first + more])
        skipped = with_batches(skipped, [batch_of(step, skipped) for step in range(first, first + more + 1)])
    assert {number for first, last in skipped for number in range(first, last + 1)} == removed
    assert [batch_of(step, skipped) for step in range(1, 51)] == slow_order(removed, 50)


def test_the_jumps_of_the_stream_lead_over_the_batches(tmp_path):
    """Reference: a reader that moves as the stream does: a step of one batch, and the jump before it."""
    Decisions(skipped=((0, 1), (7, 9), (11, 11))).write(tmp_path)
    by_step, number, order = dict(jumps(tmp_path)), 0, []
    for step in range(20):
        number += by_step.get(step, 0)
        order.append(number)
        number += 1
    assert order == slow_order({0, 1, 7, 8, 9, 11}, 20)


# ---------------------------------------------------------------------------------------------------------------------
# The decision


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints of the steps 0, 10, 20, 29 and 30, the best of which is that of step 30."""
    for step, skipped in ((0, 0), (10, 0), (20, 0), (29, 0), (30, 2)):
        state = {"step": step, "skipped_in_a_row": skipped, "validation_loss": 9.0 - step}
        tables = {"model": {"weight": torch.full((4,), float(step))}}
        save_checkpoint(tmp_path / "checkpoints", step, tables, state, keep_last=9, keep_best=True)
    return tmp_path


def steps(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def spike(*steps: int) -> list[Spike]:
    return [Spike(step, 9.0, 2.0, 50.0) for step in steps]


@pytest.mark.parametrize(("first", "back"), [(32, 30), (31, 29), (30, 20), (29, 20), (22, 20), (21, 10), (2, 0)])
def test_a_state_is_good_when_the_loss_after_it_is_no_spike(run, first, back):
    """Reference: by hand. What the loss of step 31 measures is the state of step 30, which is then no good one."""
    assert decide(run, spike(first, first + 2), limit=3) == back
    decisions = Decisions.read(run)
    assert decisions.skipped == ((first - 2, first + 1),)
    assert decisions.going_back_to == back
    assert steps(run) == [0, 10, 20, 29, 30], "nothing is thrown away yet"
    for step in (10, 30):
        (run / "exports" / f"step-{step:08d}").mkdir(parents=True)
    carry_out(run)
    assert steps(run) == [step for step in (0, 10, 20, 29, 30) if step <= back]
    exported = [path.name for path in sorted((run / "exports").iterdir())]
    assert exported == [f"step-{step:08d}" for step in (10, 30) if step <= back]
    found, problems = newest_whole(run / "checkpoints")
    assert (found.step, problems) == (back, [])
    best = run / "checkpoints" / "best"
    assert not best.exists() if back < 30 else best.read_text() == "step-00000030\n"
    assert Decisions.read(run) == replace(decisions, going_back_to=None)


def test_a_damaged_checkpoint_is_passed_over(run):
    """Reference: the one before it."""
    (run / "checkpoints" / "step-00000020" / "model.safetensors").write_bytes(b"")
    assert decide(run, spike(25), limit=3) == 10


def test_a_second_spike_takes_more_and_the_limit_ends_it(run):
    """Reference: by hand. Step 24 reads batch 27 after the first way back, which left out the batches 23 to 26."""
    assert decide(run, spike(25, 27), limit=2) == 20
    carry_out(run)
    assert decide(run, spike(24), limit=2) == 20
    assert Decisions.read(run).skipped == ((22, 27),)
    carry_out(run)
    before = (run / "skips.json").read_bytes()
    assert decide(run, spike(40), limit=2) is None
    assert (run / "skips.json").read_bytes() == before and steps(run) == [0, 10, 20]


def test_without_a_good_checkpoint_or_room_for_the_decision_the_run_goes_on(run):
    """Reference: no decision, and every checkpoint is there."""
    assert decide(run, spike(1), limit=3) is None
    (run / "skips.json.partial").mkdir()
    assert decide(run, spike(25), limit=3) is None
    assert not (run / "skips.json").exists()
    carry_out(run)
    assert steps(run) == [0, 10, 20, 29, 30]


def test_what_a_killed_process_left_to_do_is_done_once(run):
    """Reference: the decision. Checkpoints that the run wrote since then are its own."""
    assert decide(run, spike(25), limit=3) == 20
    (run / "checkpoints" / "step-00000030" / "manifest.json").unlink()  # killed while it removed this one
    carry_out(run)
    assert steps(run) == [0, 10, 20]
    save_checkpoint(run / "checkpoints", 30, {"model": {"weight": torch.ones(4)}}, {"step": 30}, keep_last=9)
    carry_out(run)
    assert steps(run) == [0, 10, 20, 30]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"skipped": 3}', '{"skipped": [], "rewinds": []}'])
def test_a_decision_that_cannot_be_read_is_named_with_the_way_out(tmp_path, content):
    """Reference: the sentence a user should read; to ignore it would change the data silently."""
    (tmp_path / "skips.json").write_text(content)
    with pytest.raises(UserError, match=r"skips.json: cannot be read .*; bring it back, or remove it"):
        Decisions.read(tmp_path)
    forget(tmp_path)
    assert Decisions.read(tmp_path) == Decisions()


def test_the_last_good_checkpoint_is_the_newest_whole_one_whose_update_was_applied(run):
    """Reference: by hand: that of step 30 is in a row of updates that were left out."""
    assert "step-00000029 (step 29): remove those after it" in last_applied(run / "checkpoints")
    (run / "checkpoints" / "step-00000029" / "model.safetensors").write_bytes(b"")
    assert "step-00000020 (step 20)" in last_applied(run / "checkpoints")
