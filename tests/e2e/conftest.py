"""Real shards from real text, and the real commands in processes of their own."""

import json
import os
import pydoc_data.topics
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Python's help topics, a paragraph a document, built by the real commands with held-out documents."""
    folder = tmp_path_factory.mktemp("data")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs))
    tokenizer = ["--input", folder / "text.jsonl", "--output", folder / "tokenizer", "--vocab-size", 600]
    done = command("data_pipeline", "tokenizer", *tokenizer)
    assert done.returncode == 0, done.stderr
    build = ["--input", folder / "text.jsonl", "--tokenizer", folder / "tokenizer", "--output", folder / "shards"]
    done = command("data_pipeline", "build", *build, "--validation-fraction", 0.05, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny(shards) -> list[str]:
    """The demo's configuration, smaller, on these shards."""
    return ["configs/demo.yaml", f"data.path={shards}", *TINY]
