"""`status` says of a run folder what its files say, and whether a process trains in it."""

import json
import os
import socket
import time

import pytest

from train.__main__ import main
from train.config_file import dump_config
from train.errors import UserError
from train.monitor.metrics import MetricsFile
from train.run_directory import lock
from train.status import status

HOST = socket.gethostname()


def record(step, **more):
    known = {"step": step, "loss": 7.0 - step / 100, "tokens_seen": 128 * step, "epoch": step / 40}
    return known | {"tokens_per_second": 6400.0, "step_seconds": 0.02} | more


@pytest.fixture
def run(tmp_path, configure):
    """The folder of a run of 100 steps that is at step 60, with a checkpoint, a spike and an account of its time."""
    (tmp_path / "config.yaml").write_text(dump_config(configure()))
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for step in range(1, 61):
        file.write(record(step, **({"validation_loss": 6.5 + step / 1000} if step in (30, 60) else {})))
    file.close()
    for step in (30, 60):
        folder = tmp_path / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    (tmp_path / "checkpoints" / "best").write_text("step-00000030\n")
    (tmp_path / "checkpoints" / "step-00000075").mkdir()  # half removed: it counts for nothing
    spike = {"step": 41, "kind": "loss spike", "rows": [], "time": "2026-01-01T00:00:00+00:00"}
    (tmp_path / "incidents.jsonl").write_text(json.dumps(spike) + "\n")
    owner = {"job": None, "start": 0, "host": HOST, "process": 17, "since": "2026-01-01T00:00:00Z"}
    (tmp_path / "owner.json").write_text(json.dumps(owner))
    seconds = dict.fromkeys(("startup", "data_wait", "checkpoint", "validation", "lost", "idle"), 2.0)
    account = {"step": 60, "starts": 2, "written": time.time(), "seconds": seconds | {"steps": 88.0}}
    (tmp_path / "goodput.json").write_text(json.dumps(account))
    return tmp_path


def lines(run):
    return {line[:12].strip(): line[12:] for line in status(run)}


def test_a_screen_says_what_the_files_say(run):
    """Reference: the numbers by hand."""
    told = lines(run)
    assert told["step"] == "60 of 100 (60%), 7,680 tokens, epoch 1.50"
    assert told["loss"] == "6.4000; held out 6.5600 at step 60, lowest 6.5300 at step 30"
    assert told["speed"] == "6,400 tokens/s, 0.02 s a step, 1 s left"
    assert told["goodput"].startswith("88.0% of 1 min 40 s over 2 starts: startup 2 s, steps 1 min 28 s")
    assert told["checkpoint"] == "step-00000060, 0 s ago; 2 kept, best step-00000030"
    assert told["incidents"] == "1 x loss spike; the last at step 41 (2026-01-01T00:00:00+00:00): loss spike"


def test_a_screen_says_what_is_in_the_last_record_of_gradient_and_data(run):
    """Reference: the numbers by hand; no number stands as null, and damage is said where there is any."""
    norms = {"grad_norm": 0.75, "grad_norm_embeddings": 0.25, "grad_norm_encoder": None}
    data = {"mlm_target_share": 0.1496, "mae_target_share": 0.5, "padding_share": 0.0009, "damaged_blocks": 0}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(61) | norms | data | {"damaged_rows": 0}) + "\n")
    told = lines(run)
    assert told["gradient"] == "norm 0.7500 (embeddings 0.2500, encoder not finite)"
    assert told["data"] == "mlm predicts 15.0% of the tokens, mae predicts 50.0% of the tokens, 0.09% padding"
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(62) | {"damaged_blocks": 1, "damaged_rows": 2500}) + "\n")
    assert lines(run)["data"] == "1 block could not be read since this start, 2,500 rows of the whole run"
    assert "gradient" not in lines(run)


def test_a_run_is_alive_while_a_process_holds_its_folder(run):
    """Reference: the lock that a run takes; afterwards the screen says how to go on."""
    with lock(run):
        assert lines(run)["process"].startswith(f"alive: process 17 on {HOST} since 2026-01-01T00:00:00Z; last record ")
    assert lines(run)["process"].startswith("not running (last record ")
    assert f"python -m train pretrain {run}/config.yaml" in lines(run)["process"]


def test_a_run_on_another_machine_is_judged_by_its_last_record(run):
    """Reference: the time of the file; no lock can be seen from here."""
    owner = json.loads((run / "owner.json").read_text()) | {"host": "n17"}
    (run / "owner.json").write_text(json.dumps(owner))
    assert lines(run)["process"].startswith("seems alive: process 17 on n17")
    hour = time.time() - 3600
    os.utime(run / "metrics.jsonl", (hour, hour))
    assert lines(run)["process"].startswith("silent: process 17 on n17")


def test_a_run_that_has_done_nothing_yet_or_lost_files_has_a_screen(run):
    """Reference: a folder with a configuration alone."""
    for name in ("metrics.jsonl", "incidents.jsonl", "owner.json", "goodput.json"):
        (run / name).unlink()
    told = lines(run)
    assert told.keys() == {"run", "process", "checkpoint", "incidents"}
    assert told["process"].startswith("not running (no step yet)")


def test_a_run_whose_steps_are_done_says_so(run):
    """Reference: the configured number of steps; a loss that is no number is said, too."""
    file = MetricsFile(run / "metrics.jsonl", 60)
    file.write(record(100, loss=float("nan")))
    file.close()
    told = lines(run)
    assert "all steps are done" in told["process"] and told["loss"].startswith("not finite")
    assert told["speed"] == "6,400 tokens/s, 0.02 s a step"


def test_a_folder_that_is_no_run_is_one_line(tmp_path, capsys):
    """Reference: exit code 2."""
    with pytest.raises(UserError, match="no run folder"):
        list(status(tmp_path))
    assert main(["status", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"bertmae: {tmp_path}: no run folder (it has no config.yaml)\n"


def test_a_run_that_has_probes_alone_or_a_validation_without_a_number_has_a_screen(run):
    """Reference: by hand; a record of step 0 has no loss, and null stands for what is not finite."""
    (run / "metrics.jsonl").write_text('{"step": 0, "probe_a_mean_accuracy": 0.5}\n')
    assert "no step yet" in lines(run)["process"] and "loss" not in lines(run)
    file = MetricsFile(run / "metrics.jsonl", 0)
    file.write(record(1, validation_loss=6.5))
    file.write(record(2, validation_loss=float("nan")))
    file.close()
    assert lines(run)["loss"] == "6.9800; held out 6.5000 at step 1, lowest 6.5000 at step 1"
