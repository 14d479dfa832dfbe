"""A rank of the test of changing batch sizes: the same updates under every DeepSpeed file, and by plain PyTorch.

Run on every rank with a file for the results. A micro-batch has four rows, so two ranks begin without accumulation:
what DeepSpeed itself takes for the number of accumulation steps, one, holds for the first updates alone.
"""

import json
import sys
from itertools import chain
from pathlib import Path

import torch
from torch import nn
from zero_worker import VOCABULARY, difference, global_rows, joined, make_config, shared

from train import distributed
from train.config import Config, global_batch_size
from train.data.batch import Batch
from train.ds_config import load_ds_config, zero_stage
from train.engine import Engine
from train.objectives import build_objective
from train.optimizer import build_optimizer, learning_rate

MICRO = 4
SIZES = [8, 16, 24, 8]  # of every update
FILES = ["zero0", "zero1", "zero2", "zero3", "zero2-offload", "zero3-offload-parameters"]
Weights = dict[str, torch.Tensor]


def configured(file: str, precision: str = "fp32", sizes: list[int] = SIZES) -> Config:
    changes = [{"step": step, "rows": rows} for step, rows in enumerate(sizes) if step]
    batch = {"global_batch_size": sizes[0], "micro_batch_size": MICRO, "global_batch_size_at": changes}
    engine = {"ds_config": f"ds_configs/{file}.json", "precision": precision}
    return Config.model_validate(make_config(2).model_dump() | {"batch": batch, "engine": engine})


def rows_of(update: int) -> list[Batch]:
    """As many rows as the update asks for: no row comes twice."""
    first = sum(SIZES[:update]) // 8
    return list(chain.from_iterable(global_rows(number) for number in range(first, first + SIZES[update] // 8)))


def plain() -> tuple[Weights, list[float]]:
    """The reference: one process, one batch an update, torch's AdamW and clipping, no DeepSpeed."""
    config = configured("zero0")
    torch.manual_seed(0)
    module = build_objective(config, VOCABULARY)
    optimizer = build_optimizer(module, config)
    norms = []
    for update in range(len(SIZES)):
        batch = joined(rows_of(update))
        selection = module.select(batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, config)
        losses_H, _ = module(batch, selection)
        (losses_H / torch.from_numpy(module.target_counts(selection))).sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in module.named_parameters()}, norms


def start(config: Config, ranks: distributed.Ranks, weights: Weights | None = None) -> Engine:
    """An engine; at stage 3 every parameter is really partitioned."""
    ds_config = load_ds_config(config, ranks.world_size)
    if zero_stage(ds_config) == 3:
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    torch.manual_seed(0)
    module = build_objective(config, VOCABULARY)
    if weights is not None:
        module.load_state_dict(weights, strict=False)
    return Engine(module, config, ds_config, ranks)


def step(engine: Engine, config: Config, ranks: distributed.Ranks, update: int, poisoned: int = -1) -> float:
    """One update of its rows, over ranks and accumulation steps; the gradient's norm. One micro-batch may be NaN."""
    rows = rows_of(update)
    assert len(rows) == global_batch_size(config.batch, update) or config.batch.global_batch_size_at == ()
    accumulation = len(rows) // MICRO // ranks.world_size
    starts = [(a * ranks.world_size + ranks.rank) * MICRO for a in range(accumulation)]
    batches = [joined(rows[start : start + MICRO]) for start in starts]
    selections = [engine.module.select(batch) for batch in batches]
    counts_H = ranks.sum(sum(engine.module.target_counts(selection) for selection in selections).tolist())
    engine.set_learning_rate(learning_rate(update, config))
    for number, (batch, selection) in enumerate(zip(batches, selections, strict=True)):
        factor = float("nan") if number == poisoned and ranks.rank == 0 else 1.0
        scale_H = torch.tensor([factor / count for count in counts_H])
        engine.micro_step(batch, selection, scale_H, last=number == accumulation - 1)
    return float(engine.gradient_norm)


def changing(file: str, ranks: distributed.Ranks, reference: Weights, norms: list[float]) -> dict:
    """Every update, then one of 24 rows whose first micro-batch is not finite on rank 0."""
    config = configured(file)
    engine = start(config, ranks)
    found = [step(engine, config, ranks, update) for update in range(len(SIZES))]
    tables = shared(engine.state())
    step(engine, config, ranks, SIZES.index(24), poisoned=0)
    after = shared(engine.state())
    return {
        "difference": difference(tables, reference),
        "norms": max(abs(a - b) / b for a, b in zip(found, norms, strict=True)),
        "applied": engine.applied,
        "updates": engine.updates,
        "unchanged": all(torch.equal(tables[t][name], after[t][name]) for t in tables for name in tables[t]),
    }


def restarted(file: str, precision: str, ranks: distributed.Ranks) -> float:
    """The largest difference between one engine for all sizes, and a new one for each, that knows of no other."""
    config = configured(file, precision)
    engine = start(config, ranks)
    tables = shared(engine.state())
    for update, size in enumerate(SIZES):
        step(engine, config, ranks, update)
        alone = configured(file, precision, [size])
        other = start(alone, ranks, tables["model"])
        other.load_state(tables, update)
        step(other, alone, ranks, update)
        tables = shared(other.state())
    return difference(shared(engine.state()), tables["model"])


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    reference, norms = plain()
    results = {"files": {file: changing(file, ranks, reference, norms) for file in FILES}}
    results["restarted"] = {file: restarted(file, "bf16", ranks) for file in ("zero1", "zero2", "zero3")}
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
