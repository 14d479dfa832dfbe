"""What happens to a run beside its steps: what is written of it, and when a run does not learn or a rank is slow."""

import json
import math
import time
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.errors import UserError
from train.monitor import events
from train.monitor.learning import Learning
from train.monitor.metrics import read_metrics
from train.monitor.recorder import Writers
from train.monitor.slow_ranks import SlowRanks
from train.monitor.step_parts import StepParts


def test_an_incident_is_a_line_and_what_a_killed_process_left_hides_none(tmp_path):
    (tmp_path / events.FILE).write_bytes(b'{"step": 3, "kind": "loss sp')
    events.append(tmp_path, 5, "resume", "start 2 goes on from step-00000005 | 中文 <b>")
    [record] = events.read(tmp_path / events.FILE)
    assert (record["step"], record["kind"]) == (5, "resume")
    assert events.sentence(record) == "resume: start 2 goes on from step-00000005 | 中文 <b>"
    assert "**step 5**" in events.page(tmp_path) and "&#124; 中文 &#60;b&#62;" in events.page(tmp_path)


def test_a_disk_that_refuses_costs_the_line_and_a_missing_file_is_one_line(tmp_path):
    events.append(tmp_path / "gone", 5, "stop", "asked")
    assert not (tmp_path / "gone").exists() and events.page(tmp_path) == ""
    with pytest.raises(UserError, match=r"incidents\.jsonl: cannot be read"):
        events.read(tmp_path / events.FILE)


def test_the_next_record_and_tensorboard_say_what_happened(tmp_path):
    """Reference: what was told. The second page has all, the records each its own, curves none of the words.

    A hang has no record of its own start, which it ends: the first of the next one has it, and of that one alone.
    """
    events.append(tmp_path, 0, "hang", "of long ago")
    events.append(tmp_path, 0, "restart", "start 1")
    events.append(tmp_path, 0, "slow rank", "in a record already")
    events.append(tmp_path, 0, "hang", "of a start before")
    writers = Writers.open(tmp_path, 10, 0, 0)
    record = {"loss": 1.0, "tokens_seen": 1, "tokens_per_second": 1.0, "step_seconds": 1.0}
    writers.tell(0, "resume", "start 2")
    writers.write([record | {"step": 1}, record | {"step": 2}])
    writers.write([record | {"step": 3}])
    writers.tell(3, "slow rank", "rank 1")
    writers.write([record | {"step": 4}])
    writers.close()
    told = {record["step"]: record.get("incident") for record in read_metrics(tmp_path / "metrics.jsonl")}
    assert told == {1: None, 2: "hang: of a start before; resume: start 2", 3: None, 4: "slow rank: rank 1"}
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    pages = board.Tensors("incidents/text_summary")
    assert [event.step for event in pages] == [2, 4]
    text = pages[-1].tensor_proto.string_val[0].decode()
    assert [text.index(words) for words in ("rank 1", "start 2", "of a start before")] == sorted(
        text.index(words) for words in ("rank 1", "start 2", "of a start before")
    )


def judged(losses, **settings):
    learning = Learning(**({"unigram_entropy": 6.0, "warmup_steps": 100} | settings))
    pairs = enumerate(losses, start=1)
    return {100 * i: found for i, loss in pairs if (found := learning.judge(100 * i, loss))}


def test_a_plateau_is_three_validations_after_the_warmup_near_what_frequencies_give():
    """Reference: 0.97 x 6 = 5.82 nats by hand. It is said once, and one validation below begins the count anew."""
    found = judged([{"validation_mlm_loss": loss} for loss in (5.9, 5.9, 5.83, 5.81, 5.9, 5.83, 5.9, 5.9)])
    assert list(found) == [700]  # step 100 is warm-up, at 400 the count begins anew
    [(kind, words)] = found[700]
    assert kind == "plateau" and "mlm: the model predicts frequencies only: held-out loss 5.900" in words
    assert not judged([{"validation_contrast_loss": 9.0}] * 9)


def test_losses_of_tokens_stand_beside_that_of_frequencies_alone():
    """Reference: the entropy that is given; a head that predicts no tokens has none."""
    learning = Learning(unigram_entropy=6.0, warmup_steps=0)
    losses = {"validation_loss": 5.0, "validation_mlm_loss": 5.0, "validation_contrast_loss": 1.0}
    assert learning.frequencies(losses) == {"validation_mlm_frequencies_loss": 6.0}


def test_a_divergence_is_three_validations_above_the_lowest():
    """Reference: 1.1 x 2 = 2.2 by hand; a loss that is no number is above."""
    losses = (3.0, 2.0, 2.3, 2.3, 2.19, 2.3, math.nan, 2.21)
    found = judged([{"validation_loss": loss} for loss in losses])
    assert list(found) == [800] and found[800][0][0] == "divergence"


def slow_ranks(seconds_R, intervals):
    """Sentences of some intervals on rank 0, where rank r works seconds_R[r] of each step."""
    micros_R = [round(seconds * 1e6) for seconds in seconds_R]
    ranks = SimpleNamespace(rank=0, world_size=len(seconds_R), hosts_R=tuple("abcd"), of_all=lambda own: micros_R)
    watch = SlowRanks(ranks)
    return [watch.measure(seconds_R[0]) for _ in range(intervals)]


def test_a_rank_is_slow_after_three_intervals_far_above_the_median():
    """Reference: minimum, median and maximum by hand."""
    told = slow_ranks([0.1, 0.12, 0.4, 0.1], 5)
    numbers = {"rank_work_min_seconds": 0.1, "rank_work_median_seconds": 0.11, "rank_work_max_seconds": 0.4}
    assert all(record == numbers | {"slowest_rank": 2} for record, _ in told)
    assert [sentence is not None for _, sentence in told] == [False, False, True, False, False]
    assert told[2][1].startswith("rank 2 on c is slow: 0.4 s of a step")
    assert not any(sentence for _, sentence in slow_ranks([0.1, 0.12, 0.14, 0.1], 5))
    assert not any(sentence for _, sentence in slow_ranks([0.001, 0.001, 0.004, 0.001], 5))
    assert slow_ranks([0.1], 1) == [({}, None)]


def test_parts_of_a_step_are_the_time_within_them():
    """Reference: sleeps."""
    parts = StepParts(torch.device("cpu"))
    for _ in range(2):
        with parts.part("forward"):
            time.sleep(0.02)
        time.sleep(0.05)
    with parts.part("optimizer"):
        time.sleep(0.03)
    found = parts.take()
    assert 0.04 <= found["forward"] < 0.09 and found["backward"] == 0 and found["optimizer"] >= 0.03
    assert parts.take() == dict.fromkeys(found, 0.0)


def test_all_kinds_of_lines_are_read_alike(tmp_path):
    (tmp_path / events.FILE).write_text(
        json.dumps({"step": 4, "kind": "loss spike", "rows": [], "loss": 9.0, "expected": 5.0}) + "\n[]\n{}\nnothing\n"
    )
    [record] = events.read(tmp_path / events.FILE)
    assert events.sentence(record) == "loss spike: 9.0000 where 5.0000 was expected"
