"""A rank of the test of splits: gradients of one global batch, cut into several numbers of micro-batches.

Run on every rank with a folder for the results.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from zero_worker import VOCABULARY, global_rows, joined, make_config

from train import distributed
from train.config import Config
from train.data.batch import Batch
from train.ds_config import load_ds_config
from train.engine import Engine
from train.model.documents import Documents
from train.objectives import build_objective

ROWS, BETA = 32, 0.9
OBJECTIVES = ({"name": "joint"}, {"name": "mlm", "mask_unit": "word"}, {"name": "retromae", "mask_unit": "span"})


def rows() -> list[Batch]:
    """32 rows of very different lengths; every eighth is a filler, so that some micro-batches have no target."""
    found = [row for update in range(ROWS // 8) for row in global_rows(update)]
    starts = np.random.default_rng(0)
    words = [torch.from_numpy(starts.random(len(row.ids_T)) < 0.6) for row in found]
    found = [replace(row, word_starts_T=framed(row, flags)) for row, flags in zip(found, words, strict=True)]
    return [filler() if number % 8 == 5 else row for number, row in enumerate(found)]


def framed(row: Batch, starts_T: torch.Tensor) -> torch.Tensor:
    first_D = row.cu_seqlens_D1[:-1].long()
    starts_T[first_D] = starts_T[first_D + 1] = starts_T[row.cu_seqlens_D1[1:].long() - 1] = True
    return starts_T


def filler() -> Batch:
    documents = Documents.of(np.array([2]), torch.device("cpu"))
    ids_T, place_D = torch.tensor([2, 3]), torch.tensor([0])
    starts_T = torch.tensor([True, True])
    return Batch(ids_T, starts_T, documents.lengths_D, documents.cu_seqlens_D1, place_D - 1, place_D, epoch=0, tokens=0)


def configured(objective: dict, micro_batches: int, world_size: int) -> Config:
    batch = {"global_batch_size": ROWS, "micro_batch_size": ROWS // micro_batches // world_size}
    values = make_config(2).model_dump() | {"objective": objective, "batch": batch}
    values["optimizer"] |= {"gradient_clipping": 0.0, "betas": [BETA, 0.98]}
    return Config.model_validate(values)


def whole(objective: dict) -> dict[str, torch.Tensor]:
    """The reference: the mean over all targets of the batch in one piece, in one process, by autograd alone."""
    torch.manual_seed(0)
    module = build_objective(configured(objective, 1, 1), VOCABULARY)
    batch = joined(rows())
    selection = module.select(batch)
    losses_H, _ = module(batch, selection)
    (losses_H / torch.from_numpy(module.target_counts(selection))).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def split(objective: dict, micro_batches: int, ranks: distributed.Ranks) -> dict[str, torch.Tensor]:
    """The same through the engine: the first moment of AdamW after one update is the gradient times 1 - beta."""
    config = configured(objective, micro_batches, ranks.world_size)
    torch.manual_seed(0)
    engine = Engine(build_objective(config, VOCABULARY), config, load_ds_config(config, ranks.world_size), ranks)
    micro, all_rows = config.batch.micro_batch_size, rows()
    starts = [(a * ranks.world_size + ranks.rank) * micro for a in range(micro_batches)]
    batches = [joined(all_rows[start : start + micro]) for start in starts]
    selections = [engine.module.select(batch) for batch in batches]
    counts_H = ranks.sum(sum(engine.module.target_counts(selection) for selection in selections).tolist())
    engine.set_learning_rate(1e-3)
    scale_H = torch.tensor([1.0 / count for count in counts_H])
    for number, (batch, selection) in enumerate(zip(batches, selections, strict=True), start=1):
        engine.micro_step(batch, selection, scale_H, last=number == micro_batches)
    return {name: moment / (1 - BETA) for name, moment in engine.state()["exp_avg"].items()}


def main(output: Path) -> None:
    """Write the largest differences as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    results = {}
    for objective in OBJECTIVES:
        expected = whole(objective)
        for micro_batches in (1, 2, 8):
            found = split(objective, micro_batches, ranks)
            if ranks.rank == 0:
                worst = max(float((found[name] - gradient).abs().max()) for name, gradient in expected.items())
                results[f"{objective['name']} {micro_batches}"] = worst
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
