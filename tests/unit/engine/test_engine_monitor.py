"""What people see of a run: metrics.jsonl, curves, records and logs, over restarts."""

import json
import logging
import math
import re
import time

import pytest
import torch

from train.distributed import Ranks
from train.errors import UserError
from train.monitor.about_run import about_run
from train.monitor.arranged import first_page
from train.monitor.goodput import PARTS, Goodput
from train.monitor.logs import add_rank_file, log, start_logging
from train.monitor.metrics import MetricsFile, last_step, read_metrics
from train.monitor.progress import duration
from train.monitor.recorder import Recorder, StepSums, Writers, head_metrics, total_loss
from train.monitor.tensorboard import Curves

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)


def write(path, resume_step, steps):
    metrics = MetricsFile(path, resume_step)
    for step in steps:
        metrics.write({"step": step, "loss": step / 8})
    metrics.close()


def strict(line):
    """A reader that refuses what JSON does not have; Python's own takes NaN and Infinity."""

    def refuse(word):
        raise ValueError(word)

    return json.loads(line, parse_constant=refuse)


# ---------------------------------------------------------------------------------------------------------------------
# metrics.jsonl


@pytest.mark.parametrize("resume_step", [0, 1, 4, 9, 10, 11])
def test_a_resumed_run_cuts_exactly_the_lines_beyond_its_step(tmp_path, resume_step):
    """Reference: the bytes of the lines up to the step."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, range(1, 11))
    lines = path.read_bytes().splitlines(keepends=True)
    write(path, resume_step, [])
    assert path.read_bytes() == b"".join(lines[:resume_step])
    write(path, resume_step, range(resume_step + 1, 14))
    assert [record["step"] for record in read_metrics(path)] == [
        *range(1, min(resume_step, 10) + 1),
        *range(resume_step + 1, 14),
    ]


def test_a_torn_last_line_is_cut_wherever_it_is_torn(tmp_path):
    """Reference: the whole lines before it. A killed process may leave any part of its last line."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, range(1, 4))
    whole = path.read_bytes()
    torn = json.dumps({"step": 4, "loss": 0.5}).encode()
    for length in range(1, len(torn) + 1):
        path.write_bytes(whole + torn[:length])
        assert last_step(path) == 3
        write(path, 100, [])
        assert path.read_bytes() == whole


@pytest.mark.parametrize("garbage", [b"\0" * 100, b"\xff\xfe\n", b"[1]\n", b'{"loss": 1}\n', b'{"step": "x"}\n'])
def test_a_line_that_is_no_record_ends_the_file(tmp_path, garbage):
    """Reference: the lines before it. A power cut may leave zeros."""
    path = tmp_path / "metrics.jsonl"
    write(path, 0, range(1, 4))
    whole = path.read_bytes()
    path.write_bytes(whole + garbage)
    assert last_step(path) == 3
    write(path, 100, [4])
    assert [record["step"] for record in read_metrics(path)] == [1, 2, 3, 4]


def test_no_step_stands_twice_after_many_kills(tmp_path):
    """Reference: the counting numbers; every life goes on from a step at or before the last one written."""
    path = tmp_path / "metrics.jsonl"
    for resume_step, end in ((0, 7), (5, 12), (10, 11), (0, 3), (3, 20)):
        write(path, resume_step, range(resume_step + 1, end + 1))
        with path.open("ab") as file:
            file.write(b'{"step": ')
    assert [record["step"] for record in read_metrics(path)] == list(range(1, 21))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null_for_strict_readers(tmp_path, value):
    """Reference: a JSON reader without Python's extensions."""
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path, 0)
    metrics.write({"step": 1, "loss": value, "grad_norm": 1.5, "updates": 3})
    metrics.close()
    (line,) = path.read_text().splitlines()
    assert strict(line) == {"step": 1, "loss": None, "grad_norm": 1.5, "updates": 3}
    assert last_step(path) == 1


def test_a_written_line_is_there_at_once(tmp_path):
    """Reference: another reader of the file, while it is still open."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", 0)
    metrics.write({"step": 1})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}]
    metrics.sync()
    metrics.close()


def test_a_run_without_metrics_is_at_step_0(tmp_path):
    """Reference: no file, and an empty one."""
    assert last_step(tmp_path / "metrics.jsonl") == 0
    (tmp_path / "metrics.jsonl").touch()
    assert last_step(tmp_path / "metrics.jsonl") == 0


def test_a_file_that_cannot_be_written_is_one_clear_line(tmp_path):
    """Reference: the file system."""
    with pytest.raises(UserError, match=r"metrics.jsonl: cannot be written \(No such file"):
        MetricsFile(tmp_path / "nowhere" / "metrics.jsonl", 0)


# ---------------------------------------------------------------------------------------------------------------------
# Records and curves


def step_sums(step, loss, hits, targets, tokens=100, norm=0.5, flops=0):
    return StepSums(
        step,
        torch.tensor(loss, dtype=torch.float64),
        torch.tensor(hits),
        targets,
        tokens,
        data_wait_seconds=0.25,
        grad_norm=torch.tensor(norm),
        others={"learning_rate": step / 16, "tokens_seen": 100 * step},
        flops=flops,
    )


@pytest.fixture
def lives(tmp_path):
    """A function that plays one life of a run: from a step, through steps, with the loss that belongs to the step."""

    def live(resume_step, steps, per_flush=3):
        writers = Writers.open(tmp_path, steps=100, resume_step=resume_step, tokens_seen=100 * resume_step)
        recorder = Recorder(ALONE, ("mlm",), (1.0,), writers)
        for step in range(resume_step + 1, steps + 1):
            recorder.add(step_sums(step, [step * 4.0], [[1, 2]], (4,)))
            if step % per_flush == 0:
                recorder.flush({"validation_mlm_loss": step * 10.0} if step % 2 == 0 else None)
        writers.close()
        return recorder

    return live


def test_a_record_holds_means_over_the_targets_and_the_weighted_sum_of_the_heads(tmp_path):
    """Reference: the sums divided by hand; a head without targets counts 0."""
    writers = Writers.open(tmp_path, steps=10, resume_step=0, tokens_seen=0)
    recorder = Recorder(ALONE, ("mlm", "reconstruction"), (0.5, 2.0), writers)
    recorder.add(step_sums(1, [12.0, 30.0], [[1, 3], [5, 6]], (4, 20)))
    recorder.add(step_sums(2, [12.0, 0.0], [[2, 3], [0, 0]], (8, 0)))
    recorder.flush({"validation_mlm_loss": 9.0})
    recorder.flush()
    writers.close()
    first, second = read_metrics(tmp_path / "metrics.jsonl")
    known = {
        "step": 1,
        "loss": 0.5 * 3 + 2.0 * 1.5,
        "mlm_loss": 3.0,
        "mlm_accuracy": 0.25,
        "mlm_perplexity": math.exp(3.0),
        "mlm_targets": 4,
        "mlm_target_share": 0.04,
        "reconstruction_loss": 1.5,
        "reconstruction_accuracy": 0.25,
        "reconstruction_perplexity": math.exp(1.5),
        "reconstruction_targets": 20,
        "reconstruction_target_share": 0.2,
        "grad_norm": 0.5,
        "learning_rate": 1 / 16,
        "tokens_seen": 100,
        "data_wait_seconds": 0.25,
    }
    assert {name: first[name] for name in known} == known
    assert first.keys() - known.keys() == {"tokens_per_second", "tokens_per_second_per_device", "step_seconds"}
    assert second.keys() - first.keys() >= {"memory_peak_gb", "starts"}
    assert second["loss"] == 0.5 * 1.5
    assert second["reconstruction_accuracy"] is None  # no target
    assert second["validation_mlm_loss"] == 9.0
    assert "validation_mlm_loss" not in first
    assert second["reconstruction_targets"] == 0 and second["reconstruction_loss"] is None
    assert {name: None if math.isnan(value) else value for name, value in recorder.last.items()} == second


def test_the_speed_is_that_of_the_time_spent_training(tmp_path):
    """Reference: the tokens of the steps and the clock; a pause of 0.2 s does not count."""
    recorder = Recorder(ALONE, ("mlm",), (1.0,), None)
    before = time.perf_counter()
    recorder.go_on()
    after = time.perf_counter()
    for step in (1, 2):
        recorder.add(step_sums(step, [1.0], [[0, 0]], (1,), tokens=1000))
    time.sleep(0.05)
    shortest = time.perf_counter() - after
    recorder.pause()
    longest = time.perf_counter() - before
    time.sleep(0.2)
    recorder.pause()
    recorder.flush()
    assert shortest / 2 - 1e-5 <= recorder.last["step_seconds"] <= longest / 2 + 1e-5
    assert recorder.last["tokens_per_second"] * recorder.last["step_seconds"] == pytest.approx(1000, rel=0.01)


def test_utilisation_is_the_arithmetic_of_a_device_over_its_peak_and_never_above_1(caplog):
    """Reference: operations over seconds and ranks by hand. Without a known peak there is no MFU; more than the peak is
    said once and no MFU."""
    for peak, expected in ((None, set()), (400.0, {"mfu"}), (1e-9, set())):
        recorder = Recorder(ALONE, ("mlm",), (1.0,), None, peak_tflops=peak)
        for step in (1, 2, 3, 4):
            recorder.add(step_sums(step, [1.0], [[0, 0]], (1,), flops=10**12))
            if step % 2 == 0:
                time.sleep(0.02)
                recorder.flush()
        last = recorder.last
        assert last["tflops_per_second"] * last["step_seconds"] == pytest.approx(1, rel=0.01)
        assert last.keys() & {"mfu"} == expected
        if expected:
            assert last["mfu"] == pytest.approx(last["tflops_per_second"] / 400, abs=1e-4)
    assert [record.message.count("there is no MFU") for record in caplog.records] == [1]


def test_most_frequent_accuracy_is_that_of_one_constant_guess():
    """Reference: hits over targets by hand."""
    record = head_metrics(("mlm", "other"), [[8.0, 1, 3], [6.0, 0, 0]], (4, 2))
    assert record["mlm_most_frequent_accuracy"] == 0.75 and record["other_most_frequent_accuracy"] == 0.0
    assert total_loss(record, ("mlm", "other"), (3.0, 1.0)) == 9.0


def test_a_head_without_targets_has_no_loss_and_adds_none():
    """Reference: by hand; a step none of whose rows could be read has no loss at all, which is not one of 0."""
    heads = ("mlm", "other")
    record = head_metrics(heads, [[8.0, 1, 3], [0.0, 0, 0]], (4, 0))
    names = ("loss", "accuracy", "perplexity", "most_frequent_accuracy")
    assert all(math.isnan(record[f"other_{name}"]) for name in names)
    assert total_loss(record, heads, (3.0, 1.0)) == 6.0
    assert math.isnan(total_loss(head_metrics(heads, [[0.0, 0, 0]] * 2, (0, 0)), heads, (3.0, 1.0)))


def test_curves_show_each_step_once_and_in_order_after_restarts(tmp_path, lives):
    """Reference: the counting numbers, as TensorBoard's own reader finds them; and the records of metrics.jsonl."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lives(0, 9)
    lives(6, 12)  # killed at 9 or later, gone on from the checkpoint of step 6
    lives(3, 15)  # that one and the next were damaged
    lives(15, 18)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = list(range(1, 19))
    records = {record["step"]: record for record in read_metrics(tmp_path / "metrics.jsonl")}
    assert list(records) == expected
    for tag, name in (("loss/total", "loss"), ("optimizer/learning_rate", "learning_rate")):
        events = curves.Scalars(tag)
        assert [event.step for event in events] == expected
        assert [event.value for event in events] == [records[step][name] for step in expected]
    assert [event.step for event in curves.Scalars("loss/validation_mlm")] == [6, 12, 18]
    by_tokens = EventAccumulator(str(tmp_path / "tensorboard" / "by_tokens")).Reload()
    events = by_tokens.Scalars("by_tokens/loss/total")
    assert [event.step for event in events] == [records[step]["tokens_seen"] for step in expected]
    assert [event.value for event in events] == [records[step]["loss"] for step in expected]
    assert [event.step for event in by_tokens.Scalars("by_tokens/loss/validation_mlm")] == [600, 1200, 1800]


def test_event_files_of_one_second_have_names_in_the_order_of_their_starts(tmp_path):
    """Reference: their creation. TensorBoard reads a folder by names, and a run that goes back starts twice at once."""
    before: set[str] = set()
    for _ in range(120):
        Curves(tmp_path, 0).close()
        [new] = {path.name for path in tmp_path.iterdir()} - before
        assert all(name < new for name in before)
        before.add(new)


def test_a_resume_from_step_0_leaves_no_old_curve(tmp_path, lives):
    """Reference: the steps of the second life alone."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lives(0, 9)
    lives(0, 3)
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in curves.Scalars("loss/total")] == [1, 2, 3]
    assert last_step(tmp_path / "metrics.jsonl") == 3


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (41.6, "42 s"),
        (59.6, "1 min 0 s"),
        (185, "3 min 5 s"),
        (3599.7, "1 h 0 min"),
        (7800, "2 h 10 min"),
        (86399.9, "1 d 0 h"),
        (356400, "4 d 3 h"),
    ],
)
def test_a_duration_is_said_in_its_two_largest_units(seconds, words):
    """Reference: arithmetic by hand."""
    assert duration(seconds) == words


# ---------------------------------------------------------------------------------------------------------------------
# Goodput


def open_goodput(tmp_path, resume_step=0):
    """The account of a start, as the writers open it: what lies beyond the step is cut from the metrics."""
    metrics = MetricsFile(tmp_path / "metrics.jsonl", resume_step)
    metrics.close()
    return Goodput.open(tmp_path / "goodput.json", resume_step, metrics.cut)


def timed(path, steps):
    """Records of steps of 2 s each, a quarter of it a wait for data."""
    metrics = MetricsFile(path / "metrics.jsonl", steps[0] - 1)
    for step in steps:
        metrics.write({"step": step, "step_seconds": 2.0, "data_wait_seconds": 0.5})
    metrics.close()


def end_of_a_start(tmp_path, step, seconds, ago):
    """The file of a start that was last heard of `ago` seconds before now, at `step`."""
    account = {"step": step, "starts": 1, "written": time.time() - ago, "seconds": dict.fromkeys(PARTS, 0.0) | seconds}
    (tmp_path / "goodput.json").write_text(json.dumps(account))


def test_every_moment_belongs_to_exactly_one_part(tmp_path):
    """Reference: the clock beside it; the sum of all parts is the time since the process started."""
    account = open_goodput(tmp_path)
    account.begin(time.monotonic() - 10)
    account.enter("steps")
    time.sleep(0.05)
    account.waited(0.02)
    account.enter("checkpoint")
    time.sleep(0.1)
    account.enter("validation")
    account.enter("steps")
    before = time.monotonic()
    time.sleep(0.05)
    record = account.so_far()
    assert sum(account.seconds.values()) == pytest.approx(10 + 0.2, abs=0.05 + time.monotonic() - before)
    assert account.seconds["startup"] == pytest.approx(10, abs=0.05)
    assert account.seconds["checkpoint"] == pytest.approx(0.1, abs=0.05)
    assert account.seconds["data_wait"] == 0.02
    assert account.seconds["lost"] == account.seconds["idle"] == 0
    assert record["goodput"] == pytest.approx(account.seconds["steps"] / sum(account.seconds.values()), abs=1e-5)
    assert record.keys() == {"goodput", "starts", *(f"{part}_seconds_total" for part in PARTS)}


def test_steps_done_again_are_lost_whether_the_account_knows_them_or_not(tmp_path):
    """Reference: by hand. Of 12 steps of 2 s the account has 8, the run goes on from 5: 3 known ones move to `lost`,
    and the time of the 4 others was not idle."""
    timed(tmp_path, range(1, 13))
    end_of_a_start(tmp_path, 8, {"steps": 12.0, "data_wait": 4.0, "startup": 3.0}, ago=30)
    account = open_goodput(tmp_path, resume_step=5)
    account.begin(time.monotonic() - 10)
    assert account.seconds["lost"] == 7 * 2
    assert account.seconds["steps"] == 12 - 3 * 1.5
    assert account.seconds["data_wait"] == 4 - 3 * 0.5
    assert account.seconds["startup"] == 3
    assert account.seconds["idle"] == pytest.approx(30 - 10 - 4 * 2, abs=0.1)
    assert account.starts == 2


def test_the_account_goes_on_over_starts(tmp_path):
    """Reference: what the start before wrote; a start that goes on from its last step has lost nothing."""
    timed(tmp_path, range(1, 4))
    first = open_goodput(tmp_path, resume_step=3)
    first.begin(time.monotonic() - 5)
    first.enter("steps")
    first.write()
    second = open_goodput(tmp_path, resume_step=3)
    second.begin(time.monotonic())
    assert second.seconds == first.seconds | {"idle": pytest.approx(0, abs=0.1)}
    assert second.starts == 2
    assert second.seconds["startup"] == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize("jump", [-4e9, -5e3, 0.0, 5e3, 4e9])
@pytest.mark.parametrize("when", ["in a start", "between two starts"])
def test_no_time_of_day_changes_the_account(tmp_path, monkeypatch, jump, when):
    """Reference: clocks that nobody can set, beside a time of day that jumps by hours or centuries."""
    real = time.time
    first = open_goodput(tmp_path)
    first.begin(time.monotonic() - 5)
    first.enter("steps")
    if when == "in a start":
        monkeypatch.setattr(time, "time", lambda: real() + jump)
    first.write()
    monkeypatch.setattr(time, "time", lambda: real() + jump if when == "between two starts" else real())
    second = open_goodput(tmp_path)
    second.begin(time.monotonic())
    second.write()
    assert sum(second.seconds.values()) == pytest.approx(5, abs=0.3)
    assert min(second.seconds.values()) >= 0
    assert 0 <= second.so_far()["goodput"] <= 1


def test_after_a_reboot_a_time_of_day_that_goes_back_is_no_negative_idle(tmp_path, monkeypatch):
    """Reference: the account of the start before; of the idle time nobody knows anything."""
    first = open_goodput(tmp_path)
    first.begin(time.monotonic() - 5)
    first.write()
    file = tmp_path / "goodput.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot": "another", "since_boot": 9e9}))
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() - 1e6)
    second = open_goodput(tmp_path)
    second.begin(time.monotonic() - 0.2)
    assert second.seconds["idle"] == 0
    assert min(second.seconds.values()) >= 0


@pytest.mark.parametrize("content", ["", "{", "[]", '{"step": 1}', '{"step": 1, "seconds": 3}'])
def test_a_file_that_says_nothing_is_named_and_the_account_begins_anew(tmp_path, logs, caplog, content):
    """Reference: an account of nothing; a run does not end for its statistics."""
    (tmp_path / "goodput.json").write_text(content)
    logs.addHandler(caplog.handler)
    account = open_goodput(tmp_path, resume_step=3)
    assert f"{tmp_path}/goodput.json cannot be read" in caplog.text
    assert account.starts == 1 and not any(account.seconds.values())


def test_the_account_of_a_run_that_was_deleted_is_not_continued(tmp_path):
    """Reference: an account of nothing; neither metrics nor a checkpoint speak of the steps in the file."""
    end_of_a_start(tmp_path, 8, {"steps": 16.0}, ago=100)
    account = open_goodput(tmp_path)
    account.begin(time.monotonic())
    assert account.starts == 1 and sum(account.seconds.values()) == 0


def test_a_disk_that_refuses_costs_a_warning(tmp_path, logs, caplog):
    """Reference: the file system; a file lies where the folder should be."""
    (tmp_path / "run").touch()
    logs.addHandler(caplog.handler)
    Goodput(tmp_path / "run" / "goodput.json", 0).write()
    assert "goodput.json: cannot write" in caplog.text


def test_one_sentence_says_where_the_time_went(tmp_path):
    """Reference: the words by hand."""
    account = Goodput(tmp_path / "goodput.json", 0, dict.fromkeys(PARTS, 0.0) | {"steps": 90.0, "idle": 30.0}, starts=2)
    assert account.sentence() == (
        "Goodput 75.0% of 2 min 0 s since the first of 2 starts: startup 0 s, steps 1 min 30 s, data wait 0 s, "
        "checkpoint 0 s, validation 0 s, lost 0 s, idle 30 s."
    )


def test_records_and_curves_carry_the_goodput_of_their_flush(tmp_path, lives):
    """Reference: the account; the last record of every flush has it, and TensorBoard a curve of each part."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    lives(0, 6)
    with_goodput = [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl") if "goodput" in record]
    assert with_goodput == [3, 6]
    curves = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = {"goodput/goodput", "goodput/starts", *(f"goodput/{part}_seconds_total" for part in PARTS)}
    assert tags <= set(curves.Tags()["scalars"])
    assert [event.step for event in curves.Scalars("goodput/goodput")] == [3, 6]


# ---------------------------------------------------------------------------------------------------------------------
# Logs


@pytest.fixture
def logs():
    """The project's logger, put back as it was."""
    before = list(log.handlers), log.level, log.propagate
    yield log
    for handler in set(log.handlers) - set(before[0]):
        handler.close()
    log.handlers, log.level, log.propagate = before


@pytest.mark.parametrize("rank", [0, 1])
def test_every_rank_has_its_file_and_the_terminal_shows_rank_0(tmp_path, capsys, logs, rank):
    """Reference: the layout of a run folder; two starts of one run stand in the same file."""
    for start in (1, 2):
        start_logging(rank)
        add_rank_file(tmp_path, rank)
        logs.info("start %d", start)
        logs.handlers[-1].close()
    assert capsys.readouterr().out == ("start 1\nstart 2\n" if rank == 0 else "")
    lines = (tmp_path / f"log-rank{rank}.txt").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["INFO start 1", "INFO start 2"]
    assert [path.name for path in tmp_path.iterdir()] == [f"log-rank{rank}.txt"]


def test_libraries_are_quiet_unless_something_is_wrong(logs):
    """Reference: the level of each logger."""
    start_logging(0)
    for library in ("transformers", "torch.distributed", "DeepSpeed", "tensorboard"):
        assert logging.getLogger(library).getEffectiveLevel() == logging.ERROR


# ---------------------------------------------------------------------------------------------------------------------
# What TensorBoard shows beside the curves


def test_the_first_page_has_a_chart_for_every_curve_that_it_names(tmp_path, lives):
    """Reference: the tags of a run's curves, as the plugin matches them: each at its beginning."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.custom_scalar import layout_pb2

    lives(0, 6)
    tags = set()
    for folder in (tmp_path / "tensorboard", tmp_path / "tensorboard" / "by_tokens"):
        tags |= set(EventAccumulator(str(folder)).Reload().Tags()["scalars"])
    [value] = first_page(["mlm"], is_scaled=False, is_shared=False).value
    layout = layout_pb2.Layout.FromString(value.tensor.string_val[0])
    charts = {(part.title, chart.title): chart.multiline.tag for part in layout.category for chart in part.chart}
    shown = {
        name: {tag for tag in tags if any(re.match(word, tag) for word in words)} for name, words in charts.items()
    }
    assert shown["Learning", "mlm: loss"] == {"loss/mlm", "loss/validation_mlm"}
    assert shown["Learning, by tokens seen", "mlm: loss"] == {"by_tokens/loss/mlm", "by_tokens/loss/validation_mlm"}
    # Of a GPU and of the walk through the data, or of runs that something happened to.
    others = {"TFLOP/s of each device", "MFU", "epoch of each source", "gradient norm of each part"}
    others |= {"quarantined: damaged blocks, and rows of them", "skipped steps: updates left out"}
    others |= {"padding: share of the rows' room that no token takes"}
    assert {title for (_, title), found in shown.items() if not found} <= others


def test_runs_can_be_compared_by_their_fields_and_curves(configure):
    """Reference: the fields of the configuration, as TensorBoard's plugin reads them."""
    from tensorboard.plugins.hparams import plugin_data_pb2

    config = configure("optimizer.learning_rate=2e-4")
    summaries = {value.tag: value for summary in about_run(config) for value in summary.value}
    content = summaries["_hparams_/session_start_info"].metadata.plugin_data.content
    given = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert given["optimizer.learning_rate"].number_value == 2e-4
    assert given["objective.name"].string_value == "mlm" and given["run.steps"].number_value == 100
    assert b"learning_rate: 0.0002" in summaries["config/text_summary"].tensor.string_val[0]
    assert torch.__version__.encode() in summaries["environment/text_summary"].tensor.string_val[0]
