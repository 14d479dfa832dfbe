"""Files of a run on a disk that is full for a while."""

import json
import resource
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train.monitor import growing
from train.monitor.growing import GrowingFile
from train.monitor.metrics import MetricsFile, read_metrics
from train.monitor.tensorboard import Curves


@pytest.fixture
def room():
    """`room(n)`: no file of this process grows beyond n bytes; a write that would is cut there, the next one fails."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_what_found_no_room_is_written_later_in_order_and_once(tmp_path, room, heard):
    """Reference: all pieces one after another. The disk is full in the middle of a piece. One warning."""
    file, pieces = GrowingFile(tmp_path / "file"), [f"piece {i};".encode() for i in range(40)]
    room(100)
    for piece in pieces[:30]:
        file.append(piece)
    whole = b"".join(pieces)
    assert (tmp_path / "file").read_bytes() == whole[:100]
    room(205)
    file.append(pieces[30])
    assert (tmp_path / "file").read_bytes() == whole[:205]
    room(10_000)
    for piece in pieces[31:]:
        file.append(piece)
    assert (tmp_path / "file").read_bytes() == whole
    file.close()
    assert [record.levelname for record in heard.records] == ["WARNING", "INFO"]
    assert "file: cannot be written (File too large): the run goes on" in heard.messages[0]


def test_memory_is_bounded_and_the_oldest_are_lost(tmp_path, room, heard, monkeypatch):
    """Reference: the piece that was begun, and the newest ones; the number that was lost is said."""
    monkeypatch.setattr(growing, "MOST_WAITING", 5)
    file = GrowingFile(tmp_path / "file")
    room(2)
    for i in range(10):
        file.append(f"{i}bcd;".encode())
    room(1000)
    file.close()
    assert (tmp_path / "file").read_bytes() == b"0bcd;6bcd;7bcd;8bcd;9bcd;"
    assert heard.messages[-1].endswith("file: 5 records were never written")


def test_metrics_and_curves_have_each_step_once_after_a_full_disk(tmp_path, room, heard):
    """Reference: the counting numbers, as strict readers find them, in the file and in TensorBoard."""
    metrics, curves = MetricsFile(tmp_path / "metrics.jsonl", 0), Curves(tmp_path / "tensorboard", 0)
    for step in range(1, 31):
        room({8: 600, 20: 100_000}.get(step, 600 if 8 < step < 20 else 100_000))
        for file in (metrics, curves):
            file.write({"step": step, "loss": step / 8, "grad_norm": 0.5})
        if step == 15:
            assert read_metrics(tmp_path / "metrics.jsonl")[-1]["step"] < 15
    metrics.close()
    curves.close()
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 31))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/total")
    assert [(event.step, event.value) for event in events] == [(step, step / 8) for step in range(1, 31)]


def test_a_run_that_ends_on_a_full_disk_leaves_whole_records_to_the_next_start(tmp_path, room, heard):
    """Reference: the counting numbers: what never found room is done again by a start from an earlier step."""
    for resume_step, steps, most in ((0, 12, 600), (5, 20, 100_000)):
        metrics, curves = MetricsFile(tmp_path / "metrics.jsonl", resume_step), Curves(tmp_path / "t", resume_step)
        room(most)
        for step in range(resume_step + 1, steps + 1):
            for file in (metrics, curves):
                file.write({"step": step, "loss": step / 8, "grad_norm": 0.5, "some_other_name_loss": 2.0})
        metrics.close()
        curves.close()
        room(100_000)
    assert [record["step"] for record in read_metrics(tmp_path / "metrics.jsonl")] == list(range(1, 21))
    events = EventAccumulator(str(tmp_path / "t")).Reload().Scalars("loss/total")
    assert [event.step for event in events] == list(range(1, 21))
