"""The memory that `estimate` computes beside what a process takes; a table in Markdown.

    python benchmarks/memory.py [--output FILE.md]

Every row is a process of its own that trains some steps under DeepSpeed on one CPU. Measured is the most memory that
was resident (VmHWM) beyond what it had once everything was imported. Blocks of malloc go back to the system when they
are freed (MALLOC_MMAP_THRESHOLD_), as a device's allocator would reuse them.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

VOCABULARY, ROWS, LENGTH = 30_522, 4, 256
ROW = tuple[str, str, str, bool, int]  # ds_config, precision, objective, gradient checkpointing, accumulation steps
CASES: list[ROW] = [
    ("zero0", "fp32", "mlm", False, 1),
    ("zero0", "fp32", "mlm", True, 2),
    ("zero1", "fp32", "mlm", False, 1),
    ("zero1", "bf16", "mlm", False, 2),
    ("zero2", "fp32", "mae", False, 1),
    ("zero2", "bf16", "mlm", False, 1),
    ("zero2", "bf16", "mae", True, 2),
    ("zero3", "fp32", "mlm", False, 1),
    ("zero3", "bf16", "mlm", True, 2),
    ("zero2-offload", "fp32", "mlm", False, 1),
]
HEADER = "ds_config | precision | objective | recomputed | accumulation | estimated MB | measured MB | ratio"


def main() -> None:
    """Measure every case; print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="write the table here, too")
    parser.add_argument("--side", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train(*options.side)))
        return
    lines = [f"| {HEADER} |", "|" + "---|" * 8]
    for case in CASES:
        estimated, measured = compare(case)
        cells = [*case[:3], "yes" if case[3] else "no", case[4], f"{estimated:,.0f}", f"{measured:,.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + f" | {estimated / measured:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")


def compare(case: ROW) -> tuple[float, float]:
    """(estimated, measured) megabytes of a case."""
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--side", json.dumps(case)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return estimate(case), json.loads(done.stdout.splitlines()[-1])


def estimate(case: ROW) -> float:
    """Megabytes by the model of train/estimate/memory.py; what is offloaded lies in the same memory here."""
    import torch

    from train.ds_config import load_ds_config
    from train.estimate.activations import measure_activations
    from train.estimate.memory import Model, memory
    from train.objectives import build_objective

    config = make_config(case)
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_objective(config, vocabulary()).parameters())
    width = config.model.encoder.hidden_size
    model = Model(parameters, VOCABULARY, width, measure_activations(config), LENGTH)
    found = memory(config, load_ds_config(config, 1), model, 1, ROWS, accumulates=case[4] > 1, device="cpu")
    return (found.peak + found.host) / 1e6


def train(*case: Any) -> float:
    """Megabytes that some steps took."""
    import torch

    from train import distributed
    from train.ds_config import load_ds_config
    from train.engine import Engine
    from train.estimate.activations import full_rows
    from train.objectives import build_objective

    config, known = make_config(case), vocabulary()
    torch.manual_seed(0)
    ranks = distributed.start()
    warm_up()
    imports = resident()
    engine = Engine(build_objective(config, known), config, load_ds_config(config, 1), ranks)
    scale_H = torch.full((len(engine.module.heads),), 1e-3)
    for number in range(2 * case[4]):
        batch = full_rows(ROWS, LENGTH, VOCABULARY, seed=number)
        engine.micro_step(batch, engine.module.select(batch, 0), scale_H, last=(number + 1) % case[4] == 0)
    return peak() - imports


def warm_up() -> None:
    """What torch and DeepSpeed import at their first use is no memory of the model."""
    import torch

    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=True)
    optimizer.param_groups[0]["params"][0].grad = torch.zeros(2)
    optimizer.step()
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401


def make_config(case: Any) -> Any:
    """BERT's layers at half the width."""
    from train.config import Config

    ds_config, precision, objective, recomputed, accumulation = case
    encoder = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "intermediate_size": 2048}
    model = {"encoder": encoder, "decoder": {"num_hidden_layers": 2}, "gradient_checkpointing": recomputed}
    return Config.model_validate(
        {
            "data": {"path": "unused", "sequence_length": LENGTH},
            "model": model,
            "objective": {"name": objective},
            "batch": {"global_batch_size": ROWS * accumulation, "micro_batch_size": ROWS},
            "engine": {"ds_config": f"ds_configs/{ds_config}.json", "precision": precision},
        }
    )


def vocabulary() -> Any:
    """Of the size of bert-base-uncased's."""
    import numpy as np

    from train.vocabulary import Vocabulary

    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    return Vocabulary(VOCABULARY, special, np.arange(5, VOCABULARY), 11, 1.0)


def peak() -> float:
    """VmHWM of Linux: the most megabytes that were resident at once."""
    return _status("VmHWM")


def resident() -> float:
    """Megabytes that are resident now."""
    return _status("VmRSS")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024 / 1e6


if __name__ == "__main__":
    main()
