"""The real commands in processes of their own, and what they leave behind."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = [
    "data.sequence_length=64",
    "model.encoder.hidden_size=32",
    "model.encoder.num_attention_heads=2",
    "model.encoder.intermediate_size=64",
    "model.encoder.max_position_embeddings=64",
    "model.encoder.hidden_dropout_prob=0.1",
    "batch.global_batch_size=8",
    "batch.micro_batch_size=2",
    "schedule.warmup_steps=5",
    "engine.precision=fp32",
    "logging.interval_steps=1",
]


def environment() -> dict[str, str]:
    """One thread a process, as on a node where every rank has its share; no variables of an outer torchrun."""
    outer = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(*words: object, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in the project's folder, to its end."""
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def start(*words: object) -> subprocess.Popen[str]:
    """The same, going on beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics(run: Path) -> list[dict]:
    """All records of a run, read strictly: every line is whole."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def reached(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until the run has written the record of `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")
