"""Poisoned rows through the real commands under torchrun, two gloo ranks: what is written down, and the way back."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from e2e_commands import ROOT, command, environment, metrics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from train.config import Config
from train.config_file import load_config
from train.data.order import Share
from train.data.plan_cache import open_plan
from train.training_data import SPLIT, local_folders, open_data_sets, open_walk

STEPS, MICRO, ROWS = 44, 2, 8
SETTINGS = [f"run.steps={STEPS}", "schedule.name=constant", "validation.interval_steps=1000", "validation.max_rows=8"]
SETTINGS += ["logging.interval_steps=5", "checkpoint.interval_steps=10", "checkpoint.keep_last=2"]
# A checkpoint at step 31: of a spike that begins with step 32 it may be a part already.
SETTINGS += ["checkpoint.keep_every=31"]
SETTINGS += ["incidents.spike_warmup_steps=10", "incidents.spike_window=20", "incidents.rewind=true"]


@pytest.fixture(scope="module")
def batches(tiny) -> list[list[str]]:
    """The rows of each global batch as EPOCH/ROW, by the walk itself, without a run."""
    config: Config = load_config(Path(tiny[0]), [*tiny[1:]])
    sets = open_data_sets(config, local_folders(config))
    walk = open_walk(config, sets, lambda s, rules: open_plan(s.manifest, SPLIT, rules, s.store))
    cursor, share, rows = walk.start, Share(0, 1, ROWS, ROWS), []
    for _ in range(STEPS + 10):
        [batch] = walk.batches(cursor, share)
        rows.append(sorted({f"{batch.epoch}/{row}" for row in batch.row_ids_D.tolist()}))
        cursor = walk.advance(cursor, share)
    assert len({row for batch in rows for row in batch}) == ROWS * (STEPS + 10), "one epoch must be enough"
    return rows


def train(run: Path, factors: dict, *words: object, kill: bool = False, ranks: int = 2) -> subprocess.CompletedProcess:
    run.mkdir(exist_ok=True)
    (run / "plan.json").write_text(json.dumps({"factors": factors, "kill": kill}))
    worker = [Path(__file__).with_name("incident_worker.py"), run / "plan.json", "pretrain", *words]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    variables = environment() | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, *torchrun, *map(str, worker), f"run.directory={run}"]
    return subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=240)


def ledger(run: Path) -> dict[int, list[str]]:
    """Rows of each step over both ranks, as it was done last."""
    steps: dict[int, list[str]] = {}
    by_rank = [[json.loads(line) for line in path.read_text().splitlines()] for path in run.glob("ledger-rank*.jsonl")]
    for records in by_rank:
        for step, rows in {record["step"]: record["rows"] for record in records}.items():
            steps[step] = sorted([*steps.get(step, []), *rows])
    return steps


def incidents(run: Path) -> list[dict]:
    """Those that have rows."""
    records = [json.loads(line) for line in (run / "incidents.jsonl").read_text().splitlines()]
    return [record for record in records if "rows" in record]


def named(rows: list[str]) -> list[str]:
    return sorted(f"data/{row}" for row in rows)


@pytest.fixture(scope="module")
def poison(batches) -> dict[str, float]:
    """A row of each of the batches of steps 32 and 33."""
    return {batches[31][0]: 40.0, batches[32][-1]: 40.0}


@pytest.fixture(scope="module")
def rewound(tiny, poison, tmp_path_factory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "rewound"
    done = train(run, poison, *tiny, *SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return run, done.stdout


def test_a_spike_is_written_down_with_its_rows(rewound, batches):
    """Reference: the batches of the walk; the losses that the ranks summed are those of the poisoned steps."""
    run, output = rewound
    records = incidents(run)
    assert [(record["step"], record["kind"]) for record in records] == [(32, "loss spike"), (33, "loss spike")]
    for record in records:
        assert sorted(record["rows"]) == named(batches[record["step"] - 1])
        assert record["deviations"] > 6 and record["loss"] > 2 * record["expected"] > 0
        assert record["sequence_length"] == 64
    assert re.search(rf"data-report {run}/config.yaml --incident 33", output)


def test_the_run_goes_back_and_trains_on_every_other_row_once(rewound, batches):
    """Reference: the batches of the walk without those of steps 31 to 33, step by step; step 30 is the newest one whose
    state the loss of the next step has shown to be good."""
    run, output = rewound
    assert "Going back to step 30" in output and "(step 30," in output
    kept = [rows for number, rows in enumerate(batches) if not 30 <= number <= 32]
    assert ledger(run) == dict(enumerate(kept[:STEPS], start=1))
    skips = json.loads((run / "skips.json").read_text())
    assert (skips["skipped"], skips["going_back_to"]) == ([[30, 32]], None)
    [rewind] = skips["rewinds"]
    assert (rewind["spike"], rewind["last"], rewind["checkpoint"]) == (32, 33, 30)


def test_nothing_of_the_steps_thrown_away_is_left(rewound):
    """Reference: the counting numbers in metrics.jsonl and TensorBoard; their time is lost in goodput.json; the
    checkpoint of step 31 is of the second time that the run came there."""
    run, output = rewound
    assert [record["step"] for record in metrics(run)] == list(range(1, STEPS + 1))
    assert max(record["loss"] for record in metrics(run)[20:]) < 2 * metrics(run)[20]["loss"]
    curves = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in curves.Scalars("loss/total")] == list(range(1, STEPS + 1))
    account = json.loads((run / "goodput.json").read_text())
    assert account["seconds"]["lost"] > 0 and account["starts"] == 2
    assert output.count("step 31: checkpoint committed") == 2
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        f"step-{step:08d}" for step in (31, 40, STEPS)
    ]


def test_no_chart_of_the_arranged_page_is_empty(rewound):
    """Reference: the curves that TensorBoard's own reader finds; a CPU has no known peak that MFU could be a share of.
    The norms of the parts make up that of the whole."""
    boards = [EventAccumulator(str(rewound[0] / "tensorboard" / name)).Reload() for name in ("", "by_tokens")]
    tags = {tag for board in boards for tag in board.Tags()["scalars"]}
    *_, event = boards[0].Tensors("custom_scalars__config__")
    layout = Layout.FromString(event.tensor_proto.string_val[0])
    charts = [chart for category in layout.category for chart in category.chart]
    found = {chart.title: {t for t in tags for tag in chart.multiline.tag if re.match(tag, t)} for chart in charts}
    assert [title for title, curves in found.items() if not curves] == ["MFU"]
    parts = {"grad_norm/embeddings", "grad_norm/encoder", "grad_norm/decoder", "grad_norm/heads"}
    assert found["gradient norm of each part"] == parts
    norms = [
        [r[f"grad_norm_{t.partition('/')[2]}"] for t in parts] + [r["grad_norm"]] for r in metrics(rewound[0])[4::5]
    ]
    assert all(whole == pytest.approx(sum(x * x for x in own) ** 0.5, rel=1e-4) for *own, whole in norms)


@pytest.mark.slow
def test_a_run_killed_right_after_the_decision_does_the_same(rewound, tiny, poison, tmp_path):
    """Reference: the run that was not killed, bit for bit: rows, losses, weights."""
    reference, _ = rewound
    run = tmp_path / "killed"
    assert train(run, poison, *tiny, *SETTINGS, kill=True).returncode != 0
    assert json.loads((run / "skips.json").read_text())["going_back_to"] == 30
    assert (run / "checkpoints" / "step-00000031").exists(), "nothing may be thrown away before"
    done = train(run, poison, *tiny, *SETTINGS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ledger(run) == ledger(reference)
    assert [record["loss"] for record in metrics(run)] == [record["loss"] for record in metrics(reference)]
    weights = [(where / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors") for where in (run, reference)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_rows_of_an_incident_can_be_read(rewound, batches, tiny):
    """Reference: the rows of the batch, each with its words."""
    run, _ = rewound
    done = command("train", "data-report", run / "config.yaml", "--incident", 32)
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"^Row (\S+): .*\n  \[CLS\] \S", done.stdout, re.M)
    assert sorted(shown) == named(batches[31])
    done = command("train", "data-report", run / "config.yaml", "--incident", 5)
    assert done.returncode == 2
    assert done.stderr.startswith("bertmae: --incident 5: ") and "it has some of 32, 33" in done.stderr


def test_updates_that_are_not_finite_are_written_down_and_too_many_end_the_run(batches, tiny, tmp_path):
    """Reference: the poisoned rows; each is in a micro-batch of two. Up to three left out in a row are allowed."""
    run = tmp_path / "run"
    poison = {batches[4][0]: "inf", **{rows[3]: "nan" for rows in batches[13:20]}}
    settings = ["incidents.max_skipped_in_a_row=3", "incidents.rewind=false", "checkpoint.interval_steps=6"]
    done = train(run, poison, *tiny, *SETTINGS, *settings)
    records = incidents(run)
    assert [record["step"] for record in records] == [5, 14, 15, 16, 17]
    for record in records:
        assert record["kind"] == "non-finite update"
        assert sorted(record["rows"]) == named(batches[record["step"] - 1])
        assert len(record["suspects"]) == MICRO and {f"data/{row}" for row in poison} & set(record["suspects"])
    assert [record["skipped_updates"] for record in metrics(run)] == [0] * 4 + [1] * 9 + [2, 3, 4, 5]
    [line] = re.findall(r"^bertmae: (.*)$", done.stderr, re.M)
    assert line.startswith("step 17: 4 updates in a row had gradients that are not finite; ")
    assert f"the last good checkpoint is {run}/checkpoints/step-00000012 (step 12): remove those after it" in line
    assert "exitcode  : 5" in done.stderr
