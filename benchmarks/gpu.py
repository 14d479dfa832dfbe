"""Speed of training on one GPU beside the Trainer of transformers; a table in Markdown.

    python benchmarks/gpu.py [--tiny] [--seconds N] [--output FILE.md]

Every row is a process of its own, and says so where it fails: the others stand. Documents are random ids with lengths
like those of text, in packed rows of 512; the Trainer has the same joined and cut. Both have the best micro-batch that
a doubling search finds, no recomputation, AdamW, clipping. MFU is the arithmetic of the model, without padding and
without logits that nothing asks for (train/flops.py), over what a large matrix product reaches on this card.
--tiny shows on a CPU that everything runs.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gpu_row import Row  # noqa: E402
from random_shards import random_shards  # noqa: E402

VOCABULARY = 30_522
HEADER = "model | way | rows x 512 | tokens/s | x Trainer | TFLOP/s | MFU | waits for data, ms a step | peak GB"
LARGE = ["hidden_size=1024", "num_hidden_layers=24", "num_attention_heads=16", "intermediate_size=4096"]
MOST = {"ours": 60, "trainer": 60, "compiled": 100}  # seconds of a row, its start included
Result = dict[str, float]


def main() -> None:
    """Measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=330.0, help="what is not done by then is left out")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    options = parser.parse_args()
    if not options.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs everything on a CPU")
    ceiling = matmul_ceiling(torch.device("cpu" if options.tiny else "cuda"), 256 if options.tiny else 8192)
    parts = [machine(ceiling)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "set"
        random_shards(folder, 1_000_000 if options.tiny else 16_000_000, 2_000 if options.tiny else VOCABULARY)
        rows = [tiny(row) for row in TINY] if options.tiny else ROWS
        parts.append(measured(rows, folder, ceiling, time.perf_counter() + options.seconds))
    text = "\n\n".join(parts) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def rows_of(name: str, preset: str, changes: list[str], ways: str) -> list[Row]:
    """One row for each way of training a model."""
    return [Row(name, preset, changes, way) for way in ways.split()]


# What matters most comes first; a compiled row takes the micro-batch of the one that is not.
ROWS = [
    *rows_of("bert-base", "bert-base", [], "trainer ours compiled"),
    *rows_of("bert-large", "bert-base", [f"model.encoder.{change}" for change in LARGE], "trainer ours"),
    *rows_of("modernbert-base", "modernbert-base", [], "trainer ours"),
    *rows_of("mae-base", "mae-base", [], "ours"),
    *rows_of("retromae-base", "retromae-base", [], "ours"),
    *rows_of("mae-base", "mae-base", [], "compiled"),
    *rows_of("bert-large", "bert-base", [f"model.encoder.{change}" for change in LARGE], "compiled"),
    *rows_of("modernbert-base", "modernbert-base", [], "compiled"),
    *rows_of("retromae-base", "retromae-base", [], "compiled"),
]
# On a CPU compiling alone takes half a minute.
TINY = [row for row in ROWS if row.kind == "ours" or row.name == "bert-base"]


def tiny(row: Row) -> Row:
    """The same at a size for a CPU."""
    sizes = ["hidden_size=32", "num_hidden_layers=2", "num_attention_heads=2", "intermediate_size=48"]
    changes = [f"model.encoder.{size}" for size in sizes]
    if row.preset == "mae-base":
        changes.append("model.decoder={num_hidden_layers: 1}")
    return replace(row, changes=changes, first_rows=1, seconds=0.2, search_seconds=0.2)


def machine(ceiling: float) -> str:
    """Where and with what this was measured."""
    place = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    product = f"matrix products in bf16 {ceiling / 1e12:,.1f} TFLOP/s"
    return f"{place}, {product}; Python {platform.python_version()}; {packages}"


def matmul_ceiling(device: torch.device, size: int) -> float:
    """Operations a second of a large square product in bf16 on random numbers, the median of 30."""
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    times = []
    for _ in range(40):
        began = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * size**3 / sorted(times[10:])[15]


def measured(rows: list[Row], folder: Path, ceiling: float, deadline: float) -> str:
    """The table; the next row starts up while one is measured."""
    lines = [f"| {HEADER} |", "|" + "---|" * 9]
    found: dict[tuple[str, str], Result] = {}
    workers = {0: _start(rows[0], folder)}
    for number, row in enumerate(rows):
        if number + 1 < len(rows):
            workers[number + 1] = _start(rows[number + 1], folder)
        eager = found.get((row.name, "ours"), {})
        given = {"rows": eager["rows"]} if row.kind == "compiled" and eager else {}
        result = _finish(workers.pop(number), given, min(MOST[row.kind], deadline - time.perf_counter()))
        if isinstance(result, str):
            lines.append(f"| {row.name} | {row.kind} | {result} |" + " |" * 6)
            continue
        found[row.name, row.kind] = result
        lines.append(_line(row, result, found.get((row.name, "trainer")), ceiling))
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def _line(row: Row, result: Result, peer: Result | None, ceiling: float) -> str:
    cells = [
        row.name,
        row.kind,
        f"{result['rows']:.0f}",
        f"{result['speed']:,.0f}",
        f"{result['speed'] / peer['speed']:.2f}" if peer else "",
        f"{result['flops'] / 1e12:,.1f}",
        f"{result['flops'] / ceiling:.1%}",
        f"{result['waited']:.2f}" if "waited" in result else "",
        f"{result['peak']:.1f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _start(row: Row, folder: Path) -> subprocess.Popen:
    pipe = subprocess.PIPE
    command = [sys.executable, str(Path(__file__).with_name("gpu_row.py")), json.dumps(asdict(row)), str(folder)]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


def _finish(worker: subprocess.Popen, given: dict[str, float], seconds: float) -> Result | str:
    """What a row measured, or in words why it has nothing."""
    if seconds <= 0:
        worker.kill()
        worker.communicate()
        return "not begun: out of time"
    try:
        out, errors = worker.communicate(json.dumps(given), timeout=seconds)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.communicate()
        return f"not done within {seconds:.0f} s"
    if worker.returncode:
        return "failed: " + (errors.strip().splitlines() or ["no message"])[-1][:200].replace("|", "/")
    return json.loads(out.strip().splitlines()[-1])


if __name__ == "__main__":
    main()
