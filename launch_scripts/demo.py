"""The whole road on real text in minutes: documentation strings -> shards -> training -> export -> filled masks.

Every step leaves its result in a folder and is skipped where the result is there, so that an interrupted demo goes on
where it was. Run it by `make demo`, or with the environment's Python from the project's folder.
"""

import argparse
import json
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import yaml

CONFIG = Path("configs/demo.yaml")
SENTENCES = (
    "Return the [MASK] of the file.",
    "If the argument is not given, [MASK] is raised.",
    "This method returns [MASK] if the string is empty.",
)
STOPPED = 75


def main() -> int:
    options = _options()
    work: Path = options.directory
    data, run, model = work / "data", work / "run", work / "model"
    if model.exists() and _finished(run, options.steps):
        print(f"The demo is done; everything is in {work}. Remove that folder to see it again.")
        _closing(data, run, model, 0)
        return 0
    data.mkdir(parents=True, exist_ok=True)
    children = Children()
    began = time.monotonic()
    commands = [
        ("Collecting the documentation strings of Python's standard library", _collect(data), data / "docs.jsonl"),
        ("Training a WordPiece tokenizer on them", _tokenizer(data), data / "tokenizer"),
        ("Writing shards", _build(data), data / "shards" / "manifest.json"),
        ("Training", _train(data, run, options.steps), None),
        ("Exporting", ["train", "export", run, "--output", model], model),
        ("Filling masks", ["train", "fill-mask", model, *SENTENCES], None),
    ]
    for title, words, result in commands:
        if result is None or not result.exists():
            print(f"\n== {title}", flush=True)
            code = children.run(words)
            if code:
                return _ended_early(code)
    _closing(data, run, model, time.monotonic() - began)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--directory", type=Path, default=Path("runs/demo"), help="where everything goes (%(default)s)")
    parser.add_argument("--steps", type=int, help="length of the training (configs/demo.yaml)")
    return parser.parse_args()


class Children:
    """Runs commands; a request to stop is the running command's to answer, and nothing is started after it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False
        # A terminal sends INT to the child as well; TERM comes to this process alone.
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "_stopped", True))
        signal.signal(signal.SIGTERM, self._forward)

    def run(self, words: list[object]) -> int:
        if self._stopped:
            return STOPPED
        self._child = subprocess.Popen([sys.executable, "-m", *map(str, words)])
        code = self._child.wait()
        return STOPPED if self._stopped and code else code

    def _forward(self, number: int, _frame: object) -> None:
        self._stopped = True
        if self._child:
            self._child.send_signal(number)


def _finished(run: Path, steps: int | None) -> bool:
    """Whether the newest checkpoint is that of the last step."""
    latest = run / "checkpoints" / "latest"
    if not latest.exists():
        return False
    wanted = steps or yaml.safe_load(CONFIG.read_text())["run"]["steps"]
    return int(latest.read_text().strip().removeprefix("step-")) >= wanted


def _collect(data: Path) -> list[object]:
    return ["data_pipeline", "stdlib-docs", "--output", data / "docs.jsonl"]


def _tokenizer(data: Path) -> list[object]:
    files = ["--input", data / "docs.jsonl", "--output", data / "tokenizer"]
    return ["data_pipeline", "tokenizer", *files, "--vocab-size", 2048]


def _build(data: Path) -> list[object]:
    files = ["--input", data / "docs.jsonl", "--tokenizer", data / "tokenizer", "--output", data / "shards"]
    return ["data_pipeline", "build", *files, "--validation-fraction", 0.05]


def _train(data: Path, run: Path, steps: int | None) -> list[object]:
    ranks = _ranks()
    rows = 16  # as in the configuration: a step is the same on any number of devices
    settings = [f"data.path={data / 'shards'}", f"run.directory={run}", f"batch.micro_batch_size={rows // ranks}"]
    settings += [f"run.steps={steps}", f"schedule.warmup_steps={steps // 10}"] if steps else []
    return ["train", "launch", "--nproc-per-node", ranks, "pretrain", CONFIG, *settings]


def _ranks() -> int:
    """All GPUs, as far as 16 rows can be shared evenly; two processes where there is none."""
    import torch

    gpus = torch.cuda.device_count()
    return max(n for n in (1, 2, 4, 8, 16) if n <= gpus) if gpus else 2


def _ended_early(code: int) -> int:
    if code == STOPPED:
        print("\nStopped. The same command goes on from here.", flush=True)
    return code


def _closing(data: Path, run: Path, model: Path, seconds: float) -> None:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "validation_loss" in record)
    speed = statistics.median(record["tokens_per_second"] for record in records)
    print(f"\n== Held-out documents after {last['step']} steps ({last['tokens_seen']:,} tokens)")
    print(f"{'':28}{'loss':>8}{'accuracy':>12}{'most frequent token':>22}")
    for head, name in (("mlm", "masked language model"), ("reconstruction", "reconstruction (MAE)")):
        loss, own, guess = (last[f"validation_{head}_{key}"] for key in ("loss", "accuracy", "most_frequent_accuracy"))
        print(f"{name:28}{loss:8.3f}{own:12.1%}{guess:22.1%}")
    took = f"; this call took {seconds:.0f} s" if seconds else ""
    print(f"\n{speed:,.0f} tokens/s in training{took}.\n")
    program = Path(sys.executable)
    bin_folder = program.parent.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program.parent
    print("To go on:")
    print(f"  {bin_folder}/tensorboard --logdir {run}/tensorboard")
    print(f'  {bin_folder}/python -m train fill-mask {model} "The file is [MASK] for reading."')
    print(f"  {bin_folder}/python -m data_pipeline inspect {data}/shards")
    longer = f"data.path={data}/shards run.directory={run} run.steps={2 * last['step']}"
    print(f"  {bin_folder}/torchrun --nproc-per-node 2 -m train pretrain {CONFIG} {longer}")


if __name__ == "__main__":
    sys.exit(main())
