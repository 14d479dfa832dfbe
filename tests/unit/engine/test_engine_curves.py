"""Records become columns, and columns curves of few points; references are plain loops over lists."""

import json
import math
import random
from itertools import pairwise

import numpy as np
import pytest

from train.monitor.metrics import MetricsFile
from train.reports.charts import charts
from train.reports.curves import Curve, curve, read_columns, smoothed, thinned


def points(count, seed=0):
    draw = random.Random(seed)
    return [float(step) for step in range(1, count + 1)], [draw.gauss(5, 1) for _ in range(count)]


@pytest.mark.parametrize(("count", "most"), [(1, 4), (4, 4), (5, 4), (1003, 100), (2000, 7)])
def test_thinned_buckets_are_means_of_neighbours(count, most):
    """Reference: the list cut at i * count // buckets, sums by hand."""
    x, y = points(count)
    found = thinned(Curve(np.array(x), np.array(y)), most)
    buckets = min(count, most)
    cuts = [i * count // buckets for i in range(buckets + 1)]
    parts = [(x[a:b], y[a:b]) for a, b in pairwise(cuts)]
    assert max(len(part) for part, _ in parts) - min(len(part) for part, _ in parts) <= 1
    assert found.x_B == pytest.approx([sum(part) / len(part) for part, _ in parts])
    assert found.y_B == pytest.approx([sum(part) / len(part) for _, part in parts])
    assert found.low_B.tolist() == [min(part) for _, part in parts]
    assert found.high_B.tolist() == [max(part) for _, part in parts]


def test_nothing_is_thinned_to_nothing():
    """Reference: empty lists."""
    assert not len(thinned(Curve(np.empty(0), np.empty(0))).x_B)


@pytest.mark.parametrize("window", [1, 2, 9, 500])
def test_a_smoothed_value_is_the_mean_of_its_neighbours(window):
    """Reference: the mean of a slice, cut off at both ends."""
    _, y = points(100)
    half = window // 2
    slices = [y[max(0, i - half) : i + half + 1] for i in range(100)]
    assert smoothed(np.array(y), window) == pytest.approx([sum(part) / len(part) for part in slices])


def test_columns_tell_what_is_missing_from_what_is_not_finite(tmp_path):
    """Reference: the records as written; a step-0 record has probes alone, and words are no numbers."""
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    file.write({"step": 0, "probe_a_mean_accuracy": 0.5})
    file.write({"step": 1, "loss": 3.0, "tokens_seen": 128, "incident": "stop"})
    file.write({"step": 2, "loss": float("nan"), "tokens_seen": 256, "validation_loss": 2.5})
    file.close()
    with (tmp_path / "metrics.jsonl").open("a") as torn:
        torn.write('{"step": 3, "loss"')
    columns = read_columns(tmp_path / "metrics.jsonl")
    assert columns.keys() == {"step", "probe_a_mean_accuracy", "loss", "tokens_seen", "validation_loss"}
    assert columns["loss"][1:].tolist() == [3.0, math.inf] and math.isnan(columns["loss"][0])
    assert [math.isnan(value) for value in columns["validation_loss"]] == [True, True, False]
    loss, held_out = curve(columns, "loss"), curve(columns, "validation_loss", "tokens_seen")
    assert (loss.x_N.tolist(), loss.y_N.tolist()) == ([1.0], [3.0])
    assert (held_out.x_N.tolist(), held_out.y_N.tolist()) == ([256.0], [2.5])
    assert not len(curve(columns, "probe_a_mean_accuracy", "tokens_seen").x_N)
    assert not len(curve(columns, "mfu").x_N)


def written(tmp_path, *records):
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return read_columns(tmp_path / "metrics.jsonl")


def shown(columns):
    return {chart.name: [line.column for line in chart.lines] for chart in charts(columns)}


def test_a_run_has_the_charts_of_its_numbers(tmp_path):
    """Reference: written down by hand for a run with two heads."""
    step = {"loss": 5.0, "mlm_loss": 2.0, "mlm_accuracy": 0.1, "mlm_targets": 9, "decoder_loss": 3.0}
    step |= {"decoder_accuracy": 0.2, "learning_rate": 0.1, "grad_norm": 1.0, "tokens_seen": 9}
    step |= {"tokens_per_second": 9.0, "step_seconds": 0.1, "data_wait_seconds": 0.0}
    last = {"validation_loss": 5.5, "validation_mlm_loss": 2.5, "validation_mlm_accuracy": 0.1, "goodput": 0.5}
    last |= {"validation_mlm_most_frequent_accuracy": 0.1, "validation_decoder_loss": 3.0, "memory_peak_gb": 1.0}
    last |= {"validation_mlm_frequencies_loss": 6.0}
    last |= {"validation_decoder_shuffled_loss": 4.0, "forward_seconds": 0.05, "probe_a_mean_accuracy": 0.5}
    assert shown(written(tmp_path, {"step": 1} | step, {"step": 2, "probe_seconds": 7.0} | step | last)) == {
        "loss": ["loss", "validation_loss"],
        "mlm-loss": ["mlm_loss", "validation_mlm_loss", "validation_mlm_frequencies_loss"],
        "decoder-loss": ["decoder_loss", "validation_decoder_loss", "validation_decoder_shuffled_loss"],
        "mlm-accuracy": ["mlm_accuracy", "validation_mlm_accuracy", "validation_mlm_most_frequent_accuracy"],
        "decoder-accuracy": ["decoder_accuracy"],
        "probes": ["probe_a_mean_accuracy"],
        "learning-rate": ["learning_rate"],
        "grad-norm": ["grad_norm"],
        "speed": ["tokens_per_second"],
        "step-parts": ["step_seconds", "forward_seconds", "data_wait_seconds"],
        "memory": ["memory_peak_gb"],
        "goodput": ["goodput"],
    }


def test_the_loss_of_one_head_that_is_all_of_it_stands_once(tmp_path):
    """Reference: the same numbers, and those of a head that has another weight."""
    head = {"mlm_loss": 2.0, "mlm_accuracy": 0.1}
    assert list(shown(written(tmp_path, {"step": 1, "loss": 2.0} | head))) == ["mlm-loss", "mlm-accuracy"]
    assert list(shown(written(tmp_path, {"step": 1, "loss": 1.0} | head))) == ["loss", "mlm-loss", "mlm-accuracy"]


def test_names_in_a_file_that_are_no_heads_make_no_chart(tmp_path):
    """Reference: a name with markup in it."""
    strange = {"<b>_accuracy": 0.1, "<b>_loss": 1.0, "mlm_loss": 2.0, "mlm_accuracy": 0.1}
    assert list(shown(written(tmp_path, {"step": 1, "loss": 2.0} | strange))) == ["mlm-loss", "mlm-accuracy"]
