"""bf16, cast and by autocast, learns as much from real text as fp32 does."""

import json
import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
from worker_ranks import on_ranks

from data_pipeline.__main__ import main as data_pipeline

LAST = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python's help topics, a paragraph a document, in pieces of a vocabulary of 400."""
    folder = tmp_path_factory.mktemp("text")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    text, tokenizer, shards = folder / "text.jsonl", folder / "tokenizer", folder / "shards"
    text.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    command = ["tokenizer", "--input", text, "--output", tokenizer, "--vocab-size", 400]
    assert data_pipeline(list(map(str, command))) == 0
    command = ["build", "--input", text, "--tokenizer", tokenizer, "--output", shards, "--workers", 1]
    assert data_pipeline(list(map(str, command))) == 0
    return shards


def test_bf16_learns_as_much_as_fp32(data: Path, tmp_path: Path) -> None:
    """Reference: fp32 from the same weights over the same rows: the last 20 of 100 steps differ by less than 0.01 nats
    on average (measured: 0.0009), where fp32 itself has fallen by more than 0.5 (measured: 0.80).

    The learning rate has room below the edge of stability. At 3e-3 an update of some runs steps over a cliff, a loss
    0.3 higher and a gradient of norm 23 for one step, in fp32 arithmetic too; chance decides which precision does.
    """
    output = tmp_path / "curves.json"
    curves = {case: np.array(curve) for case, curve in on_ranks("real_text_worker", 1, output, data, output).items()}
    fp32 = curves.pop("fp32")
    assert fp32[-LAST:].mean() < fp32[:5].mean() - 0.5
    assert len(curves) == 2
    for case, curve in curves.items():
        assert np.abs(curve - fp32)[-LAST:].mean() < 0.01, (case, curve - fp32)
