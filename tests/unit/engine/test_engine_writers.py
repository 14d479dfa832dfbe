"""Writers beside metrics.jsonl: order, failures and slowness of one of them cost its own records alone."""

import importlib.util
import threading
import time

import pytest

from train.errors import UserError
from train.monitor import writers
from train.monitor.recorder import Writers
from train.monitor.writers import Beside, open_others, refuse_missing

SPEED = {"tokens_per_second": 1.0, "step_seconds": 1.0}
RECORDS = [{"step": step, "loss": 1 / step, "tokens_seen": 10 * step, **SPEED} for step in range(1, 8)]


class Kept:
    """A writer that keeps what it gets, may fail at a step, and may wait for an event."""

    def __init__(self, fails_at=None, waits_for=None):
        self.records, self.closed = [], False
        self.fails_at, self.waits_for = fails_at, waits_for

    def write(self, record):
        if self.waits_for:
            self.waits_for.wait()
        if record["step"] == self.fails_at:
            raise ValueError("no network")
        self.records.append(record)

    def close(self):
        self.closed = True


def test_every_writer_gets_every_record_in_order_and_is_closed(tmp_path):
    """Reference: the records; closing twice is closing once."""
    kept = Kept()
    beside = Beside("kept", lambda: kept)
    files = Writers.open(tmp_path, 7, 0, 0, [beside])
    files.write([dict(record) for record in RECORDS])
    files.close()
    beside.close()
    assert [{key: record[key] for key in RECORDS[0]} for record in kept.records] == RECORDS
    assert kept.closed
    assert not (tmp_path / "tensorboard").exists()


def test_a_writer_that_fails_is_left_out_with_one_line(heard):
    """Reference: the records before its failure; another writer has all."""
    failing, kept = Kept(fails_at=3), Kept()
    both = [Beside("failing", lambda: failing), Beside("kept", lambda: kept)]
    for record in RECORDS:
        for writer in both:
            writer.write(record)
    for writer in both:
        writer.close()
    assert failing.records == RECORDS[:2]
    assert kept.records == RECORDS
    assert [record.getMessage() for record in heard.records] == [
        "logging.writers failing: left out from here on (no network)"
    ]


def test_a_writer_that_does_not_open_is_left_out_with_one_line(heard):
    """Reference: no record, one line."""

    def refuse():
        raise OSError("no such server")

    beside = Beside("away", refuse)
    for record in RECORDS:
        beside.write(record)
    beside.close()
    assert len(heard.records) == 1
    assert "away: left out from here on (no such server)" in heard.text


def test_a_slow_writer_holds_up_nothing_and_what_it_drops_is_counted(heard, monkeypatch):
    """Reference: of seven records one is under way and two wait; the others are dropped."""
    monkeypatch.setattr(writers, "MOST_WAITING", 2)
    gate, began = threading.Event(), time.monotonic()
    slow = Kept(waits_for=gate)
    beside = Beside("slow", lambda: slow)
    beside.write(RECORDS[0])
    while beside._waiting.qsize():
        time.sleep(0.001)
    for record in RECORDS[1:]:
        beside.write(record)
    beside.close(patience=0.2)
    assert time.monotonic() - began < 5
    assert "too slow, records are dropped" in heard.text
    assert "4 records were dropped" in heard.text
    assert "not waited for" in heard.text
    gate.set()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_named_before_anything_is_done(name):
    """Reference: whether Python finds it."""
    refuse_missing(["tensorboard"])
    if importlib.util.find_spec(name):
        refuse_missing([name])
        pytest.skip(f"{name} is installed")
    with pytest.raises(UserError, match=rf"logging.writers has {name}.*pip install 'bertmae\[{name}\]'") as caught:
        refuse_missing(["tensorboard", name])
    assert caught.value.everywhere
    assert caught.value.exit_code == 2


def resumed(name, run):
    """Two starts of a run with this writer: the ids that the run folder holds after each."""
    run.mkdir()
    ids = []
    for part in (RECORDS[:4], RECORDS[4:]):
        [beside] = open_others([name], run, {"run": {"seed": 0}})
        for record in part:
            beside.write(record)
        beside.close(60)
        ids.append((run / f"{name}.json").read_text())
    return ids


@pytest.mark.filterwarnings("default")
def test_mlflow_has_one_run_over_two_starts(tmp_path, monkeypatch, heard):
    """Reference: the losses of both starts, read back by MLflow from a store of files."""
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed: bertmae[mlflow]")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    ids = resumed("mlflow", tmp_path / "run")
    assert heard.text == ""
    assert ids[0] == ids[1]
    client = mlflow.MlflowClient()
    [found] = client.search_runs([client.get_experiment_by_name("bertmae").experiment_id])
    assert found.info.status == "FINISHED"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(r["step"], r["loss"]) for r in RECORDS]


@pytest.mark.filterwarnings("default")
def test_wandb_has_one_id_over_two_starts(tmp_path, monkeypatch, heard):
    """Reference: the id in the name of what each start leaves for `wandb sync`."""
    pytest.importorskip("wandb", reason="Weights & Biases is not installed: bertmae[wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = resumed("wandb", tmp_path / "run")
    assert heard.text == ""
    assert ids[0] == ids[1]
    files = list((tmp_path / "run/wandb").glob("offline-run-*/*.wandb"))
    assert files
    assert {f"run-{ids[0].split(chr(34))[3]}.wandb"} == {file.name for file in files}
