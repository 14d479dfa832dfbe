"""One run at many layouts, through the real command under torchrun: 4, 1, 3, 2 ranks and ZeRO stages 2, 3, 1, 0."""

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from e2e_commands import ROOT, environment, metrics, reached

STEPS, ROWS = 50, 24
# Rows of 128 tokens: an epoch ends within these steps, with a part of a batch. Dropout depends on the rank by design.
SETTINGS = ["data.sequence_length=128", "model.encoder.max_position_embeddings=128", f"batch.global_batch_size={ROWS}"]
SETTINGS += ["model.encoder.hidden_dropout_prob=0.0", "schedule.name=constant", "checkpoint.interval_steps=8"]
SETTINGS += ["validation.interval_steps=1000", "validation.max_rows=8"]
COMPARED = ("loss", "mlm_loss", "reconstruction_loss", "grad_norm", "tokens_seen", "learning_rate", "epoch")


def begin(run: Path, words: list[str], part: int, ranks: int, stage: int, micro: int, steps: int) -> subprocess.Popen:
    """Start a part of a run that writes down its rows."""
    launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    worker = [Path(__file__).with_name("ledger_worker.py"), run.with_name(f"{run.name}-{part}"), "pretrain", *words]
    layout = [f"batch.micro_batch_size={micro}", f"engine.ds_config=ds_configs/zero{stage}.json"]
    command = [sys.executable, "-m", *launch, *worker, *SETTINGS, *layout, f"run.directory={run}", f"run.steps={steps}"]
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment() | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    return output


def rank_process(run: Path, rank: int) -> int:
    found = subprocess.run(["pgrep", "-f", f"ledger_worker.*run.directory={run}"], capture_output=True, text=True)
    for pid in map(int, found.stdout.split()):
        if f"RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return pid
    raise AssertionError(f"no rank {rank} among {found.stdout.split()}")


def ledger(run: Path) -> dict[int, list[tuple[int, int]]]:
    """The rows of each step, by the last part that did it: what was done before, a later part did again."""
    trained: dict[int, list[tuple[int, int]]] = {}
    for part in range(4):
        own: dict[int, list[tuple[int, int]]] = {}
        for file in run.parent.glob(f"{run.name}-{part}-rank*.jsonl"):
            for line in map(json.loads, file.read_text().splitlines()):
                own.setdefault(line["step"], []).extend(map(tuple, line["rows"]))
        trained |= own
    return {step: sorted(rows) for step, rows in trained.items()}


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find the ranks")
def test_a_run_goes_on_at_any_number_of_ranks_and_any_stage(tiny, tmp_path):
    """Reference: one rank at stage 0 without a stop: the curve within 1e-5, the rows of every step the same, and every
    row of the first epoch once."""
    plain, moved = tmp_path / "plain", tmp_path / "moved"
    output = finished(begin(plain, tiny, 0, ranks=1, stage=0, micro=24, steps=STEPS))

    killed = begin(moved, tiny, 0, ranks=4, stage=2, micro=3, steps=STEPS)
    reached(moved, 11, killed)
    os.kill(rank_process(moved, 2), signal.SIGKILL)
    killed.communicate(timeout=120)
    assert 11 <= len(metrics(moved)) < STEPS - 16, "the kill came too late"

    stopped = begin(moved, tiny, 1, ranks=1, stage=3, micro=8, steps=STEPS)
    reached(moved, len(metrics(moved)) + 3, stopped)
    stopped.send_signal(signal.SIGTERM)
    assert "asked to stop" in stopped.communicate(timeout=120)[0]
    assert len(metrics(moved)) < STEPS - 8, "the signal came too late"

    finished(begin(moved, tiny, 2, ranks=3, stage=1, micro=4, steps=STEPS - 6))
    finished(begin(moved, tiny, 3, ranks=2, stage=0, micro=6, steps=STEPS))

    assert [record["step"] for record in metrics(moved)] == list(range(1, STEPS + 1))
    for expected, found in zip(metrics(plain), metrics(moved), strict=True):
        assert [found[name] for name in COMPARED] == pytest.approx([expected[name] for name in COMPARED], rel=1e-5)
    rows = Counter(row for rows in ledger(moved).values() for row in rows)
    assert ledger(moved) == ledger(plain)
    assert set(rows.values()) == {1}, "a row was trained twice in an epoch"
    count = int(re.search(r"packs into ([\d,]+) rows", output)[1].replace(",", ""))
    assert {row for epoch, row in rows if epoch == 0} == set(range(count)) and any(epoch for epoch, _ in rows)
