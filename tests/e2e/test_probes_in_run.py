"""Probes and samples of real runs: what they leave behind, and that the training does not notice them."""

import json
import random
import signal
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from e2e_commands import command, metrics, reached, start
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

WORDS = tuple("the statement returns a value if the name of this module is found in a class".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    """Pairs of texts with a score."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=30 - i % 7)) for i in range(3001)]
    rows = [{"a": a, "b": b, "score": i % 6} for i, (a, b) in enumerate(pairwise(texts))]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "pairs.jsonl"


def probed(pairs: Path, every: int, most: int) -> list[str]:
    sets = json.dumps([{"name": "pairs", "path": str(pairs)}])
    return [f"probes.similarity={sets}", f"probes.interval_steps={every}", f"probes.max_texts={most}"]


def test_a_run_with_probes_and_samples_has_the_weights_of_one_without_and_its_curves(tiny, pairs, tmp_path):
    """Reference: the same run without probes and samples: weights and moments to the bit, losses too. Measured are the
    beginning, every second step and the last one; TensorBoard has what metrics.jsonl has."""
    words = [*tiny, "run.steps=3", "schedule.warmup_steps=1", "validation.interval_steps=2"]
    for name, more in (("with", probed(pairs, 2, 20)), ("without", ["validation.samples=0"])):
        done = command("train", "pretrain", *words, f"run.directory={tmp_path / name}", *more)
        assert done.returncode == 0, done.stderr
    for table in ("model", "exp_avg", "exp_avg_sq"):
        both = [
            load_file(tmp_path / name / f"checkpoints/step-00000003/{table}.safetensors")
            for name in ("with", "without")
        ]
        assert both[0].keys() == both[1].keys()
        assert all(torch.equal(tensor, both[1][name]) for name, tensor in both[0].items())
    records = metrics(tmp_path / "with")
    found = {r["step"]: r["probe_pairs_cls_spearman"] for r in records if "probe_pairs_cls_spearman" in r}
    assert list(found) == [0, 2, 3] and len(set(found.values())) > 1
    losses = [
        [(r["loss"], r.get("validation_loss")) for r in metrics(tmp_path / name) if r["step"]]
        for name in ("with", "without")
    ]
    assert losses[0] == losses[1]
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    curve = {event.step: event.value for event in events.Scalars("probes/pairs_cls_spearman")}
    assert curve == pytest.approx(found, abs=1e-6)
    assert not (tmp_path / "without" / "samples.jsonl").read_bytes()
    lines = [json.loads(line) for line in (tmp_path / "with" / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 3] and all(len(line["documents"]) == 4 for line in lines)
    heads = [document["heads"] for line in lines for document in line["documents"]]
    assert all(list(document) == ["mlm", "reconstruction"] for document in heads)
    truths = [[document["heads"]["mlm"]["truth"] for document in line["documents"]] for line in lines]
    assert truths[0] == truths[1] and all(30 <= len(truth) <= 64 for truth in truths[0])
    for sample in (sample for document in heads for sample in document.values()):
        assert len(sample["truth"]) == len(sample["shown"]) == len(sample["predicted"])
        asked = [guess is not None for guess in sample["predicted"]]
        pairs = zip(sample["shown"], sample["truth"], asked, strict=True)
        hidden = [shown != true for shown, true, _ in pairs]
        assert any(asked) and any(hidden) and not all(asked)
    for head in ("mlm", "reconstruction"):
        assert [event.step for event in events.Tensors(f"samples/{head}/text_summary")] == [2, 3]
    assert [event.step for event in events.Histograms("data/document_lengths")] == [0]


def test_probes_that_a_stop_cuts_short_are_done_by_the_next_start(tiny, pairs, tmp_path):
    """Reference: the held record of the step; the next start writes it with the probes, and no step twice."""
    run = tmp_path / "run"
    words = [*tiny, f"run.directory={run}", "schedule.warmup_steps=1"]
    process = start("train", "pretrain", *words, "run.steps=1000", *probed(pairs, 1, 3000))
    reached(run, 1, process)  # step 0, which tells how long the probes take
    time.sleep(0.4 * metrics(run)[0]["probe_seconds"])
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output
    assert "step 1: validation was cut short by a request to stop" in output and len(metrics(run)) == 1
    done = command("train", "pretrain", *words, "run.steps=2", *probed(pairs, 1, 20))
    assert done.returncode == 0, done.stderr
    assert [record["step"] for record in metrics(run)] == [0, 1, 2]
    assert all("probe_pairs_mean_spearman" in record for record in metrics(run))


def test_mistakes_in_probes_end_the_run_before_it_begins(tiny, pairs, tmp_path):
    """Reference: one line with the place, exit codes 2 and 3, of a run and of a dry run."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"a": "x", "b": "y", "score": 1}\n{"a": "x"}\n')
    for path, more, code, part in (
        (tmp_path / "none.jsonl", ["--dry-run"], 2, "none.jsonl: cannot be read"),
        (bad, [], 3, "bad.jsonl:2: "),
    ):
        words = [*tiny, f"run.directory={tmp_path / 'run'}", *probed(path, 1, 20), *more]
        done = command("train", "pretrain", *words)
        assert done.returncode == code and part in done.stderr and done.stderr.count("\n") == 1, done.stderr
