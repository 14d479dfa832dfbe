"""A rank of the equivalence test: the same five updates under every ZeRO stage, and by plain PyTorch on rank 0.

Run by torchrun with a folder for the results; many cases in one start, because starting costs seconds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from train import distributed
from train.config import Config
from train.data.batch import Batch
from train.ds_config import load_ds_config
from train.engine import MOMENTS, Engine
from train.model.documents import Documents
from train.objectives import build_objective
from train.optimizer import build_optimizer, learning_rate
from train.vocabulary import Vocabulary

UPDATES, ACCUMULATION, ROWS = 5, 2, 8
VOCABULARY = Vocabulary(
    size=97,
    special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(5, 97),
    most_frequent_id=7,
    unigram_entropy=4.0,
)


def make_config(stage: int, precision: str = "fp32") -> Config:
    """Tied embedding, two losses, non-reentrant checkpointing, accumulation 2."""
    encoder = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return Config.model_validate(
        {
            "run": {"steps": 100},
            "data": {"path": "nowhere", "sequence_length": 32},
            "model": {
                "encoder": {**encoder, "max_position_embeddings": 32, "hidden_dropout_prob": 0.0},
                "decoder": {"num_hidden_layers": 1},
            },
            "objective": {"name": "joint"},
            "batch": {"global_batch_size": ROWS, "micro_batch_size": ROWS // ACCUMULATION // _world()},
            "optimizer": {"learning_rate": 1e-3, "gradient_clipping": 1.0, "weight_decay": 0.1},
            "schedule": {"warmup_steps": 2},
            "engine": {"ds_config": f"ds_configs/zero{stage}.json", "precision": precision},
        }
    )


def _world() -> int:
    return distributed.environment()[1]


def global_rows(update: int) -> list[Batch]:
    """One batch a row; rows have different lengths, so that ranks have different numbers of targets."""
    random = np.random.default_rng(update)
    rows = []
    for row in range(ROWS):
        lengths_D = random.integers(3, 14, size=2)
        documents = Documents.of(lengths_D, torch.device("cpu"))
        ids_T = random.integers(5, 97, size=lengths_D.sum())
        bounds_D1 = np.concatenate([[0], np.cumsum(lengths_D)])
        ids_T[bounds_D1[:-1]], ids_T[bounds_D1[1:] - 1] = 2, 3
        rows.append(
            Batch(
                ids_T=torch.from_numpy(ids_T),
                word_starts_T=torch.ones(len(ids_T), dtype=torch.bool),
                lengths_D=lengths_D,
                cu_seqlens_D1=documents.cu_seqlens_D1,
                row_ids_D=torch.full((2,), update * ROWS + row),
                row_offsets_D=torch.from_numpy(bounds_D1[:-1].copy()),
                epoch=0,
                tokens=int(lengths_D.sum()),
            )
        )
    return rows


def joined(rows: list[Batch]) -> Batch:
    """Several rows as one padding-free batch."""
    lengths_D = np.concatenate([row.lengths_D for row in rows])
    return Batch(
        ids_T=torch.cat([row.ids_T for row in rows]),
        word_starts_T=torch.cat([row.word_starts_T for row in rows]),
        lengths_D=lengths_D,
        cu_seqlens_D1=Documents.of(lengths_D, torch.device("cpu")).cu_seqlens_D1,
        row_ids_D=torch.cat([row.row_ids_D for row in rows]),
        row_offsets_D=torch.cat([row.row_offsets_D for row in rows]),
        epoch=0,
        tokens=sum(row.tokens for row in rows),
    )


def plain(updates: int) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The reference: one process, one batch a step, torch's AdamW and clipping, no DeepSpeed."""
    config = make_config(0)
    torch.manual_seed(0)
    module = build_objective(config, VOCABULARY)
    optimizer = build_optimizer(module, config)
    norms = []
    for update in range(updates):
        batch = joined(global_rows(update))
        selection = module.select(batch)
        counts_H = torch.from_numpy(module.target_counts(selection))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, config)
        losses_H, _ = module(batch, selection)
        (losses_H / counts_H).sum().backward()
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in module.named_parameters()}, norms


def train(engine: Engine, config: Config, ranks: distributed.Ranks, first: int, last: int, poison: int = -1) -> list:
    """Updates [first, last) of the same rows, split over ranks and accumulation steps; the gradient norms."""
    norms = []
    for update in range(first, last):
        rows = global_rows(update)
        micro = ROWS // ACCUMULATION // ranks.world_size
        starts = [(a * ranks.world_size + ranks.rank) * micro for a in range(ACCUMULATION)]
        batches = [joined(rows[start : start + micro]) for start in starts]
        selections = [engine.module.select(batch) for batch in batches]
        counts_H = ranks.sum(sum(engine.module.target_counts(selection) for selection in selections).tolist())
        engine.set_learning_rate(learning_rate(update, config))
        scale_H = torch.tensor([1.0 / count for count in counts_H])
        if update == poison and ranks.rank == 0:
            scale_H = scale_H * float("nan")
        for batch, selection in zip(batches, selections, strict=True):
            engine.micro_step(batch, selection, scale_H)
        norms.append(float(engine.gradient_norm))
    return norms


def start(
    stage: int,
    ranks: distributed.Ranks,
    weights: dict | None = None,
    persist: int = 0,
    precision: str = "fp32",
    fp16: dict | None = None,
) -> tuple[Engine, Config]:
    """An engine; at stage 3 every parameter is really partitioned (nothing persists). `fp16` changes the loss scale."""
    config = make_config(stage, precision)
    ds_config = load_ds_config(config, ranks.world_size)
    ds_config["fp16"] |= fp16 or {}
    if stage == 3:
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = persist
    torch.manual_seed(0)
    module = build_objective(config, VOCABULARY)
    if weights is not None:
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                parameter.copy_(weights[name])
    return Engine(module, config, ds_config, ranks), config


def difference(tables: dict, reference: dict[str, torch.Tensor]) -> float:
    """Largest difference of any weight."""
    return max(float((tables["model"][name] - value).abs().max()) for name, value in reference.items())


def shared(tables: dict) -> dict:
    """Rank 0's tables on every rank, as a checkpoint's files would be."""
    objects = [tables]
    torch.distributed.broadcast_object_list(objects, src=0)
    return objects[0]


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    reference, reference_norms = plain(UPDATES)
    results: dict = {"world_size": ranks.world_size, "stages": {}, "moves": {}, "poison": {}}
    middle = {}
    for stage in range(4):
        engine, config = start(stage, ranks)
        norms = train(engine, config, ranks, 0, 3)
        middle[stage] = shared(engine.state())
        norms += train(engine, config, ranks, 3, UPDATES)
        tables = engine.state()
        if ranks.rank == 0:
            results["stages"][stage] = {
                "difference": difference(tables, reference),
                "updates": engine.updates,
                "norms": max(abs(a - b) / b for a, b in zip(norms, reference_norms, strict=True)),
            }
            if stage == 0:
                straight = {name: value.clone() for name, value in tables["model"].items()}
    for source, target in ((0, 3), (1, 2), (2, 2), (2, 3), (3, 0), (3, 1), (3, 3)):
        engine, config = start(target, ranks, middle[source]["model"])
        engine.load_state(middle[source], updates=3)
        again = shared(engine.state())
        train(engine, config, ranks, 3, UPDATES)
        tables = engine.state()
        if ranks.rank == 0:
            kept = all(
                torch.equal(again[table][name], middle[source][table][name])
                for table in ("model", *MOMENTS)
                for name in reference
            )
            results["moves"][f"{source}->{target}"] = {
                "kept": kept,
                "difference": difference(tables, straight),
                "updates": engine.updates,
            }
    for stage in range(4):
        engine, config = start(stage, ranks)
        train(engine, config, ranks, 0, 1)
        before = shared(engine.state())
        train(engine, config, ranks, 1, 2, poison=1)
        after = shared(engine.state())
        results["poison"][stage] = {
            "applied": engine.applied,
            "updates": engine.updates,
            "unchanged": all(torch.equal(before[t][n], after[t][n]) for t in ("model", *MOMENTS) for n in reference),
        }
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
