"""`evaluate` in real processes: killed in the middle it goes on, and nothing that is done is done again."""

import json
import random
import statistics
import time
from pathlib import Path

import pytest
import torch
from e2e_commands import command, start
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SUITE = """
seeds: [1, 2]
settings: {max_steps: 4, global_batch_size: 8, max_length: 16}
tasks:
  words: {task: classification, train: words/train.jsonl, validation: words/dev.jsonl, test: words/dev.jsonl}
  pairs: {task: similarity, train: pairs/train.jsonl, validation: pairs/train.jsonl}
  gone: {task: classification, train: gone/train.jsonl, validation: gone/dev.jsonl}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random little BERT, a suite, and data for two of its three tasks."""
    folder, draw = tmp_path_factory.mktemp("evaluate"), random.Random(0)
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30))]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokens), max_position_embeddings=32, **sizes)).save_pretrained(
        folder / "model"
    )
    (folder / "model" / "bertmae.json").write_text('{"step": 7}')

    def text() -> str:
        return " ".join(f"w{draw.randrange(30)}" for _ in range(6))

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    for split in ("train", "dev"):
        write(f"words/{split}.jsonl", [{"text": text(), "label": i % 2} for i in range(24)])
    write("pairs/train.jsonl", [{"a": text(), "b": text(), "score": i % 5} for i in range(24)])
    (folder / "suite.yaml").write_text(SUITE)
    return folder


def test_a_suite_that_was_killed_goes_on_and_its_table_is_that_of_its_results(folder, tmp_path):
    """Reference: the results of each seed: those of the first are untouched by the second start, and mean and deviation
    follow from them. The model's own record is quoted."""
    output = tmp_path / "out"
    words = ["train", "evaluate", folder / "model", "--suite", folder / "suite.yaml", "--data", folder]
    words += ["--output", output, "--skip-absent"]
    process, first = start(*words), output / "words" / "seed-1" / "results.json"
    deadline = time.monotonic() + 200
    while not first.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    said, _ = process.communicate()
    assert first.exists(), said
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    assert f"{first.parent}: done before; nothing was trained." in done.stdout + done.stderr
    report = json.loads((output / "results.json").read_text())
    assert report["model"]["export"] == {"step": 7} and report["not_there"] == ["gone"] and not report["to_do"]
    for task, metric, split in (("words", "accuracy", "test"), ("pairs", "spearman", "validation")):
        each = [json.loads((output / task / f"seed-{seed}" / "results.json").read_text()) for seed in (1, 2)]
        values = [one["metrics"][split][metric] for one in each]
        found = report["tasks"][task]["metrics"][split][metric]
        assert found["values"] == values and found["mean"] == pytest.approx(statistics.fmean(values))
        assert found["deviation"] == pytest.approx(statistics.stdev(values))
    table = (output / "results.md").read_text()
    assert all(f"\n| {name} " in table for name in ("words", "pairs", "gone "))


def test_mistakes_end_before_anything_is_trained(folder, tmp_path):
    """Reference: one line. A task without data, and a row of the last task that is no JSON."""
    words = ["train", "evaluate", folder / "model", "--data", folder, "--output", tmp_path / "out"]
    done = command(*words, "--suite", folder / "suite.yaml")
    assert done.returncode == 2 and "no data for gone" in done.stderr and done.stderr.count("\n") == 1
    (folder / "bad").mkdir(exist_ok=True)
    (folder / "bad" / "train.jsonl").write_text('{"a": "w1", "b": "w2", "score": 1}\nno json\n')
    (tmp_path / "bad.yaml").write_text(SUITE.replace("pairs/train", "bad/train").replace("gone/", "words/"))
    done = command(*words, "--suite", tmp_path / "bad.yaml")
    assert done.returncode == 3 and "bad/train.jsonl:2: not JSON" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()
