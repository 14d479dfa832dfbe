"""Speed and memory of training on a CPU beside the Trainer of transformers; tables in Markdown.

    python benchmarks/training.py [--quick] [--corpus DIR --tokenizer DIR] [--rounds N] [--output FILE.md]

--corpus has folders */ with docs.jsonl.zst (objects with the field "text"); without it, documents are random ids. Every
side is a process of its own with two threads, 8 x 512 tokens a step, fp32, AdamW, clipping at 1; the sides train in
turns, the others stand still. The peer is what run_mlm.py of transformers does (see trainer_peer.py; needs accelerate).
Tokens are real ones: no padding. Compare numbers of one run only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from training_side import THREADS, Side  # noqa: E402

VOCABULARY = 30_522  # of random documents, as bert-base-uncased
Result = dict[str, float]


def main() -> None:
    """Measure; print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder with tokenizer.json or vocab.txt, for --corpus")
    parser.add_argument("--quick", action="store_true", help="tiny models and short rows: shows that everything runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="tables whose title contains this")
    parser.add_argument("--output", type=Path, help="write the tables here, too")
    options = parser.parse_args()
    if find_spec("accelerate") is None:
        parser.error("the Trainer needs accelerate: pip install accelerate")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        parts = [machine(), data_set(folder, options)]
        for title, sides in comparisons(options.quick).items():
            if options.only in title:
                parts.append(compare(title, sides, folder, options.rounds))
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def comparisons(quick: bool) -> dict[str, list[Side]]:
    """Tables by title; the first side of each is what the others are compared with."""
    small, base = (2, 64) if quick else (4, 256), (2, 128) if quick else (12, 768)
    tables = {
        f"MLM, {small[0]} layers x {small[1]}": [*_mlm(*small), *_engines(*small)],
        f"MLM, {small[0]} layers x {small[1]}, no dropout": [replace(side, dropout=0.0) for side in _mlm(*small)[:2]],
        f"MLM, {base[0]} layers x {base[1]}": [replace(side, steps=1) for side in _mlm(*base)],
        f"MAE that drops half, {base[0]} layers x {base[1]}, decoder of 2": [
            Side("encoder sees [MASK] at dropped places", "plain", "mae-mask-tokens", *base, steps=1),
            Side("ours: encoder sees kept tokens alone", "plain", "mae", *base, steps=1),
        ],
    }
    if quick:
        return {title: [replace(side, rows=2, length=64) for side in sides] for title, sides in tables.items()}
    return tables


def _mlm(layers: int, width: int) -> list[Side]:
    return [
        Side("Trainer, no dropout in attention", "trainer", "mlm", layers, width),
        Side("ours, plain loop", "plain", "mlm", layers, width),
        Side("Trainer, dropout in attention too (run_mlm.py)", "trainer", "mlm", layers, width, attention_dropout=0.1),
    ]


def _engines(layers: int, width: int) -> list[Side]:
    stages = (0, 2)
    return [Side(f"ours, DeepSpeed stage {s}", "engine", "mlm", layers, width, zero_stage=s) for s in stages]


def machine() -> str:
    """Where and with what this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "accelerate", "deepspeed"))
    where = f"{model}, {os.cpu_count()} cores, {THREADS} threads on every side"
    return f"{where}; Python {platform.python_version()}; {packages}"


def data_set(folder: Path, options: argparse.Namespace) -> str:
    """Build the shards that both sides read; in words, what they are."""
    if options.corpus is None:
        from random_shards import random_shards

        manifest, kind = random_shards(folder, 4_000_000, VOCABULARY), "random documents"
    else:
        from streaming import from_corpus

        manifest, kind = from_corpus(options.corpus, options.tokenizer, folder), "real text"
    split = manifest.splits["train"]
    mean = split.tokens / split.documents
    counts = f"{split.documents:,} documents, {split.tokens:,} tokens ({mean:,.0f} a document)"
    return f"{kind}: {counts}, vocabulary of {manifest.vocabulary_size:,}"


def compare(title: str, sides: list[Side], folder: Path, rounds: int) -> str:
    """Warm up each side, then let them train in turns; the table."""
    workers = [_start(side, folder) for side in sides]
    results: list[list[Result]] = [[] for _ in sides]
    for number in range(rounds + 1):
        for worker, found in zip(workers, results, strict=True):
            result = _ask(worker, "go")
            if number:  # the first round warms up
                found.append(result)
    memory = [_ask(worker, "end") for worker in workers]
    for worker in workers:
        worker.wait()
    rows = [
        _row(side.name, found, of_side, results[0], memory[0])
        for side, found, of_side in zip(sides, results, memory, strict=True)
    ]
    header = "side | tokens/s, median | of the rounds | x the first | x by processor time | peak MB | above imports"
    lines = [f"### {title}", f"| {header} | x the first |", "|" + "---|" * 8]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _row(name: str, found: list[Result], memory: Result, first: list[Result], first_memory: Result) -> tuple[str, ...]:
    """A side's numbers, and their ratios to the first one's, round by round."""
    speeds = {kind: [r["tokens"] / r[kind] for r in found] for kind in ("wall", "processor")}
    bases = {kind: [r["tokens"] / r[kind] for r in first] for kind in speeds}
    ratios = {
        kind: statistics.median(own / base for own, base in zip(speeds[kind], bases[kind], strict=True))
        for kind in speeds
    }
    own, base = (m["peak"] - m["imports"] for m in (memory, first_memory))
    return (
        name,
        f"{statistics.median(speeds['wall']):,.0f}",
        f"{min(speeds['wall']):,.0f} to {max(speeds['wall']):,.0f}",
        f"{ratios['wall']:.2f}",
        f"{ratios['processor']:.2f}",
        f"{memory['peak']:,.0f}",
        f"{own:,.0f}",
        f"{own / base:.2f}",
    )


def _start(side: Side, folder: Path) -> subprocess.Popen:
    # A side that stands still must not burn the processor: OpenMP's threads would wait for work in a loop.
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(Path(__file__).with_name("training_side.py")), json.dumps(asdict(side)), str(folder)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)


def _ask(worker: subprocess.Popen, word: str) -> Result:
    """Say a word; the line with which the worker answers."""
    print(word, file=worker.stdin, flush=True)
    for line in worker.stdout or ():
        if line.startswith("{"):  # libraries print, too
            return json.loads(line)
    raise SystemExit(f"a side ended with exit code {worker.wait()}; its message is above")


if __name__ == "__main__":
    main()
