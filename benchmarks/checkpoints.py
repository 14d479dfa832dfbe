"""What a checkpoint costs: how long it holds up the steps, and how long until it is whole; a table in Markdown.

    python benchmarks/checkpoints.py [--quick] [--ranks 2] [--rounds 5] [--folder DIR] [--output FILE.md]

A BERT of 110 M parameters in fp32 with AdamW's moments, under DeepSpeed at the stages 0, 2 and 3, one thread a rank.

held up      no step is done: every rank copies its part of the state to memory that is there since the first time
until whole  after that, and beside the steps of a run: parts sent to rank 0, files written, fsynced, checksummed,
             renamed. The two together are what the same checkpoint costs where no thread writes it: `at once`
DeepSpeed    engine.save_checkpoint, which returns when every rank has written its files; it has no fsync and no
             checksums

Nothing trains beside it, so that one thing is measured at a time. Compare numbers of one run only.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

STAGES = (0, 2, 3)
INTERVAL = 15 * 60  # seconds
COLUMNS = (
    "stage",
    "state, MB",
    "held up the first time, s",
    "held up, s: median (least to most)",
    "until whole, s",
    "held up / at once",
    "by processor time",
    "DeepSpeed, s",
    "DeepSpeed, MB",
    "held up / DeepSpeed",
    "every 15 minutes: held up",
    "at once",
    "DeepSpeed",
)
Result = dict[str, list[float]]


def main() -> None:
    """Measure; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model and two rounds: shows that everything runs")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="checkpoints of each kind after the first one")
    parser.add_argument("--folder", type=Path, help="the disk to write to (default: that of temporary files)")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    options = parser.parse_args()
    rounds = 2 if options.quick else options.rounds
    lines = [machine(options.ranks), "", f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for stage in STAGES:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            result = measured(stage, Path(folder), options.ranks, rounds, 64 if options.quick else 768)
        lines.append(f"| {' | '.join(row(stage, result))} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def machine(ranks: int) -> str:
    """Where and with what this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "unknown processor")
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "safetensors"))
    busy = f"load {os.getloadavg()[0]:.1f} before the first row"
    return f"{model}, {os.cpu_count()} cores, {ranks} ranks, {busy}; Python {platform.python_version()}; {packages}"


def measured(stage: int, folder: Path, ranks: int, rounds: int, width: int) -> Result:
    """What the ranks of one stage found; see checkpoints_side.py."""
    launcher = ["torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend=c10d"]
    side = [str(Path(__file__).with_name("checkpoints_side.py")), str(stage), str(rounds), str(width), str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "--rdzv-endpoint=localhost:0", *side],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("{")]  # libraries print, too
    if not found:
        raise SystemExit(f"stage {stage} ended with exit code {done.returncode}; its message is above")
    return json.loads(found[-1])


def row(stage: int, result: Result) -> tuple[str, ...]:
    """The cells of a stage; each kind's first checkpoint, which makes its memory, is left out of the medians."""
    held, whole, deepspeed = (result[kind][1:] for kind in ("held_up", "at_once", "deepspeed"))
    middle, at_once, peer = (statistics.median(times) for times in (held, whole, deepspeed))
    ratios = [own / all_of_it for own, all_of_it in zip(held, whole, strict=True)]
    pairs = zip(result["held_up_processor"][1:], result["at_once_processor"][1:], strict=True)
    return (
        str(stage),
        f"{result['state_bytes'][0] / 1e6:,.0f}",
        f"{result['held_up'][0]:.2f}",
        f"{middle:.3f} ({min(held):.3f} to {max(held):.3f})",
        f"{statistics.median(b - a for a, b in zip(held, whole, strict=True)):.2f}",
        f"{statistics.median(ratios):.1%}",
        f"{statistics.median(own / all_of_it for own, all_of_it in pairs):.1%}",
        f"{peer:.2f}",
        f"{result['deepspeed_bytes'][0] / 1e6:,.0f}",
        f"{middle / peer:.1%}",
        *(f"{seconds / (INTERVAL + seconds):.4%}" for seconds in (middle, at_once, peer)),
    )


if __name__ == "__main__":
    main()
