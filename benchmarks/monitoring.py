"""What watching a run costs: processor time of all monitoring in a log interval, as a share of its steps; a table.

    python benchmarks/monitoring.py [--tokens N] [--steps N] [--tiny] [--output FILE.md]

One process trains an encoder of base size on random ids under DeepSpeed, with one thread, and writes its records and
TensorBoard's curves as a run does. Every call that is there for monitoring alone is timed where it is made. Processor
time is that of the whole process, so that others on the machine do not count. With so few tokens in a step (--tokens)
the shares are upper bounds: what monitoring costs does not grow with the batch. Without samples, probes and
validation, which have intervals of their own.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

os.environ["OMP_NUM_THREADS"] = "1"
VOCABULARY, INTERVAL, HEADS = 30_522, 10, 1
LARGEST_SHARE = 0.005


class Meter:
    """Processor seconds of calls, by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.process_time() - began

    def watch(self, thing: Any, method: str, name: str) -> None:
        """Time every call of a method from here on."""
        call: Callable[..., Any] = getattr(thing, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.timed(name):
                return call(*args, **kwargs)

        setattr(thing, method, timed)


def main() -> None:
    """Measure; print the table. Exit code 1 where monitoring costs more than it may."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="of a step")
    parser.add_argument("--steps", type=int, default=2, help="timed ones, after one that is not")
    parser.add_argument("--tiny", action="store_true", help="a tiny model: shows that everything runs")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as run:
        text, share = measure(Path(run), options)
    print(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    sys.exit(0 if options.tiny or share < LARGEST_SHARE else 1)


def measure(run: Path, options: argparse.Namespace) -> tuple[str, float]:
    """The table, and the share of a step that monitoring takes."""
    import torch

    from train import distributed
    from train.ds_config import load_ds_config
    from train.engine import Engine
    from train.estimate.activations import full_rows
    from train.objectives import build_objective

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config, ranks = make_config(run, options), distributed.start()
    engine = Engine(build_objective(config, vocabulary()), config, load_ds_config(config, 1), ranks)
    meter, scale_H = Meter(), torch.full((HEADS,), 1e-3)

    def step(number: int) -> None:
        batch = full_rows(1, options.tokens, VOCABULARY, seed=number)
        engine.micro_step(batch, engine.module.select(batch, 0), scale_H, last=True)

    step(0)
    engine.parts.take()
    began = time.process_time()
    for number in range(options.steps):
        step(number + 1)
    a_step = (time.process_time() - began) / options.steps
    engine.parts.take()
    watch_engine(meter, engine)
    engine.measure_parts(True)
    step(options.steps + 1)
    write_interval(meter, config, engine, ranks)
    return table(meter.seconds, a_step, options), sum(meter.seconds.values()) / INTERVAL / a_step


def watch_engine(meter: Meter, engine: Any) -> None:
    """The step that ends an interval measures the norms of the parts."""
    meter.watch(engine._gradient_parts, "_add_tensor", "gradient norms of parts")
    meter.watch(engine, "_measured_parts", "gradient norms of parts")


def write_interval(meter: Meter, config: Any, engine: Any, ranks: Any) -> None:
    """The records of as many steps as a log interval has, once before the time counts."""
    from train.monitor.arranged import first_page
    from train.monitor.recorder import Recorder
    from train.monitor.spikes import SpikeRule
    from train.pretrain import open_writers

    page = first_page(engine.module.heads, is_scaled=False, is_shared=False)
    writers = open_writers(config, 0, 0, page, [])
    recorder = Recorder(ranks, engine.module.heads, engine.module.weights(), writers, parts=engine.parts)
    rule = SpikeRule()
    recorder.go_on()
    for first, meter_ in ((1, Meter()), (1 + INTERVAL, meter)):
        for number in range(first, first + INTERVAL):
            with meter_.timed("marks around the parts of a step"):
                for part in ("forward", "backward", "optimizer"):
                    with engine.parts.part(part):
                        pass
            sums = step_sums(number, engine)
            with meter_.timed("records kept on the device"):
                recorder.add(sums)
            with meter_.timed("looking for loss spikes"):
                rule.judge(number, 3.0, config.incidents)
        with meter_.timed("metrics.jsonl, TensorBoard, goodput"):
            recorder.flush()
    writers.close()


def step_sums(number: int, engine: Any) -> Any:
    import torch

    from train.monitor.recorder import StepSums

    others = {"learning_rate": 1e-4, "tokens_seen": 512 * number, "epoch": 0.1, "skipped_updates": 0}
    others |= {"damaged_rows": 0, "damaged_blocks": 0, "padding_share": 0.01}
    parts = engine.gradient_parts if number % INTERVAL == 0 else {}
    losses_H, hits_H2 = torch.ones(HEADS, dtype=torch.float64), torch.ones(HEADS, 2, dtype=torch.int64)
    return StepSums(number, losses_H, hits_H2, (77,), 512, 1e-5, engine.gradient_norm, others, 10**9, parts)


def table(seconds: dict[str, float], a_step: float, options: argparse.Namespace) -> str:
    """A row for each kind of monitoring."""
    lines = ["| | ms in an interval of 10 steps | ms of a step | share of a step |", "|---|---|---|---|"]
    rows = [*seconds.items(), ("all", sum(seconds.values()))]
    for name, spent in rows:
        share = spent / INTERVAL / a_step
        lines.append(f"| {name} | {1000 * spent:.2f} | {100 * spent:.3f} | {share:.3%} |")
    words = f"A step of {options.tokens} tokens: {a_step:.2f} s of processor time."
    return "\n".join([words, "", *lines]) + "\n"


def make_config(run: Path, options: argparse.Namespace) -> Any:
    """configs/bert-base.yaml in fp32 and one row, or a tiny model."""
    from train.config import Config

    width, layers = (64, 2) if options.tiny else (768, 12)
    encoder = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    encoder |= {"intermediate_size": 4 * width, "max_position_embeddings": options.tokens}
    return Config.model_validate(
        {
            "run": {"directory": str(run), "steps": 100},
            "schedule": {"warmup_steps": 10},
            "data": {"path": "unused", "sequence_length": options.tokens},
            "model": {"encoder": encoder, "gradient_checkpointing": False},
            "objective": {"name": "mlm"},
            "batch": {"global_batch_size": 1, "micro_batch_size": 1},
            "engine": {"ds_config": "ds_configs/zero2.json", "precision": "fp32"},
        }
    )


def vocabulary() -> Any:
    """Of the size of bert-base-uncased's."""
    import numpy as np

    from train.vocabulary import Vocabulary

    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    return Vocabulary(VOCABULARY, special, np.arange(5, VOCABULARY), 11, 1.0)


if __name__ == "__main__":
    main()
