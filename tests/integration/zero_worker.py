"""A rank of the equivalence test: the same five updates under every ZeRO file, and by plain PyTorch on rank 0.

Run on every rank with a file for the results; many cases in one start, because starting costs seconds. A ZeRO file is
named by what follows `zero` in its name: 2, or "3-offload".
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
from train.ds_config import load_ds_config, zero_stage
from train.engine import Engine
from train.model.documents import Documents
from train.objectives import build_objective
from train.optimizer import build_optimizer, learning_rate
from train.vocabulary import Vocabulary

UPDATES, ACCUMULATION, ROWS = 5, 2, 8
FILES = (0, 1, 2, 3, "1-offload", "2-offload", "3-offload", "3-offload-parameters")
# A ring that enters and leaves each file: with the check that loading keeps every bit, all other ways follow.
MOVES = tuple(zip(FILES, (*FILES[1:], FILES[0]), strict=True))
PARTS = {
    "embeddings": "encoder.masked_lm.bert.embeddings.",
    "encoder": "encoder.masked_lm.bert.encoder.",
    "decoder": "decoder.",
    "heads": "encoder.masked_lm.cls.",
}
VOCABULARY = Vocabulary(
    size=97,
    special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(5, 97),
    most_frequent_id=7,
    unigram_entropy=4.0,
)


def make_config(stage: int | str, precision: str = "fp32", autocast: bool = False) -> Config:
    """Tied embedding, two losses, non-reentrant checkpointing, accumulation 2, decay of one of the two groups."""
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
            "engine": {"ds_config": f"ds_configs/zero{stage}.json", "precision": precision, "autocast": autocast},
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


def plain(
    updates: int, config: Config | None = None
) -> tuple[dict[str, torch.Tensor], list[float], list[float], list[dict[str, float]]]:
    """The reference: one process, one batch a step, torch's AdamW and clipping, no DeepSpeed: weights after the last
    update, gradient norms, losses, and the gradient norms of the model's parts."""
    config = config or make_config(0)
    torch.manual_seed(0)
    module = build_objective(config, VOCABULARY)
    optimizer = build_optimizer(module, config)
    norms, losses, parts = [], [], []
    for update in range(updates):
        batch = joined(global_rows(update))
        selection = module.select(batch)
        counts_H = torch.from_numpy(module.target_counts(selection))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(update, config)
        losses_H, _ = module(batch, selection)
        loss = (losses_H / counts_H).sum()
        loss.backward()
        losses.append(float(loss))
        parts.append(norms_of_parts(module))
        norms.append(float(nn.utils.clip_grad_norm_(module.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
    return {name: p.detach().clone() for name, p in module.named_parameters()}, norms, losses, parts


def norms_of_parts(module: nn.Module) -> dict[str, float]:
    """Norms of whole gradients before clipping; which parameters make a part stands here once more, by BERT's names."""
    squares: dict[str, float] = {}
    for name, parameter in module.named_parameters():
        [part] = [part for part, begin in PARTS.items() if name.startswith(begin)]
        gradient = torch.zeros(1) if parameter.grad is None else parameter.grad
        squares[part] = squares.get(part, 0.0) + float(gradient.double().square().sum())
    return {part: square**0.5 for part, square in squares.items()}


def train(engine: Engine, config: Config, ranks: distributed.Ranks, first: int, last: int, poison: int = -1) -> list:
    """Updates [first, last) of the same rows, split over ranks and accumulation steps; the gradient norms."""
    return [step(engine, config, ranks, update, poison)[0] for update in range(first, last)]


def step(
    engine: Engine, config: Config, ranks: distributed.Ranks, update: int, poison: int = -1
) -> tuple[float, float]:
    """One update; the gradient norm and the loss of the global batch. `poison`: the update with NaN on rank 0."""
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
    loss = torch.zeros((), dtype=torch.float64)
    for number, (batch, selection) in enumerate(zip(batches, selections, strict=True), start=1):
        losses_H, _ = engine.micro_step(batch, selection, scale_H, last=number == ACCUMULATION)
        loss += (losses_H * scale_H).sum()
    torch.distributed.all_reduce(loss)
    return float(engine.gradient_norm), float(loss)


def start(
    stage: int | str,
    ranks: distributed.Ranks,
    weights: dict | None = None,
    precision: str = "fp32",
    fp16: dict | None = None,
    config: Config | None = None,
    zero: dict | None = None,
) -> tuple[Engine, Config]:
    """An engine; at stage 3 every parameter is really partitioned (nothing persists). `fp16` changes the loss scale,
    `zero` the ZeRO settings of the file, `config` replaces the configuration."""
    config = config or make_config(stage, precision)
    ds_config = load_ds_config(config, ranks.world_size)
    ds_config["fp16"] |= fp16 or {}
    if zero_stage(ds_config) == 3:
        ds_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    ds_config["zero_optimization"] |= zero or {}
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


def same(first: dict, second: dict) -> bool:
    """Whether two states are equal to the bit."""
    return all(torch.equal(first[table][name], second[table][name]) for table in first for name in first[table])


def straight(
    ranks: distributed.Ranks,
    file: int | str,
    reference: dict[str, torch.Tensor],
    norms: list[float],
    parts: list[dict[str, float]],
) -> tuple[dict, dict]:
    """Five updates, with one of NaN that must not count before the fourth; the state there, and what was measured.

    The norms of parts are measured in all updates but the third; a second engine never measures them.
    """
    engine, config = start(file, ranks)
    own, own_parts = [], []
    for update in range(UPDATES):
        if update == 3:
            middle = shared(engine.state())
            train(engine, config, ranks, 3, 4, poison=3)
            poisoned = {"applied": engine.applied, "unchanged": same(shared(engine.state()), middle)}
            poisoned["parts_of_poison"] = list(engine.gradient_parts)
        engine.measure_parts(update != 2)
        own += train(engine, config, ranks, update, update + 1)
        own_parts.append({part: float(norm) for part, norm in engine.gradient_parts.items()})
    unmeasured, config = start(file, ranks)
    train(unmeasured, config, ranks, 0, 3)
    return middle, poisoned | {
        "difference": difference(shared(engine.state()), reference),
        "updates": engine.updates,
        "norms": max(abs(a - b) / b for a, b in zip(own, norms, strict=True)),
        "own_norms": own,
        "parts": own_parts,
        "parts_of_plain": parts,
        "same_unmeasured": same(shared(unmeasured.state()), middle),
    }


def moved(ranks: distributed.Ranks, target: int | str, middle: dict, reference: dict[str, torch.Tensor]) -> dict:
    """Two updates from a state that any file may have given."""
    engine, config = start(target, ranks, middle["model"])
    engine.load_state(middle, updates=3)
    kept = same(shared(engine.state()), middle)
    train(engine, config, ranks, 3, UPDATES)
    return {
        "kept": kept,
        "difference": difference(shared(engine.state()), reference),
        "updates": engine.updates,
    }


def main(output: Path) -> None:
    """Write what was measured as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    reference, norms, _, parts = plain(UPDATES)
    results: dict = {"world_size": ranks.world_size, "files": {}, "moves": {}}
    middle = {}
    for file in FILES:
        middle[file], results["files"][file] = straight(ranks, file, reference, norms, parts)
    for source, target in MOVES:
        results["moves"][f"{source}->{target}"] = moved(ranks, target, middle[source], reference)
    if ranks.rank == 0:
        output.write_text(json.dumps(results))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
