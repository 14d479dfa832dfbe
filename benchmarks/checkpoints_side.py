"""A rank of checkpoints.py: saves the state of a model again and again, by our way and by DeepSpeed's.

    torchrun ... benchmarks/checkpoints_side.py STAGE ROUNDS WIDTH FOLDER

Rank 0 prints one line of JSON: seconds of each round, from one barrier to the next, and the processor time of rank 0.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from train import distributed  # noqa: E402
from train.checkpoint import save_checkpoint  # noqa: E402
from train.config import Config  # noqa: E402
from train.ds_config import load_ds_config  # noqa: E402
from train.engine import Engine  # noqa: E402
from train.objectives import build_objective  # noqa: E402
from train.snapshot import TABLES, Snapshot, own_group  # noqa: E402
from train.vocabulary import Vocabulary  # noqa: E402

VOCABULARY = 30_522  # as bert-base-uncased


def main(stage: int, rounds: int, width: int, folder: Path) -> None:
    """Measure our way, then DeepSpeed's."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    engine = open_engine(stage, width, ranks)
    ours, theirs = folder / "ours", folder / "deepspeed"
    result = our_way(engine, ranks, ours, rounds)
    result["state_bytes"] = [size(ours)]
    ranks.barrier()
    if ranks.rank == 0:
        shutil.rmtree(ours)
    result["deepspeed"] = []
    for number in range(rounds + 1):
        seconds, _ = timed(ranks, lambda number=number: engine._engine.save_checkpoint(str(theirs), tag=f"{number}"))
        result["deepspeed"].append(seconds)
        result["deepspeed_bytes"] = [size(theirs / f"{number}")]
        ranks.barrier()
        if ranks.rank == 0:
            shutil.rmtree(theirs / f"{number}")
    if ranks.rank == 0:
        print(json.dumps(result), flush=True)
    ranks.barrier()
    distributed.finish()


def our_way(engine: Engine, ranks: distributed.Ranks, folder: Path, rounds: int) -> dict[str, list[float]]:
    """As train/training.py saves, with nothing beside the thread: its work is done here."""
    snapshot = Snapshot(ranks, own_group(ranks))
    result: dict[str, list[float]] = {kind + what: [] for kind in ("held_up", "at_once") for what in ("", "_processor")}

    def commit(step: int) -> None:
        tables = snapshot.collect()
        if ranks.rank == 0:
            save_checkpoint(folder, step, tables, {}, 1)

    for step in range(rounds + 1):
        held = timed(ranks, lambda: snapshot.take(engine.pieces))
        rest = timed(ranks, lambda step=step: commit(step))
        for what, own, later in zip(("", "_processor"), held, rest, strict=True):
            result["held_up" + what].append(own)
            result["at_once" + what].append(own + later)
    return result


def timed(ranks: distributed.Ranks, action: Callable[[], object]) -> tuple[float, float]:
    """Seconds until all ranks have done it, and the processor time of this one."""
    ranks.barrier()
    began, processor = time.perf_counter(), time.process_time()
    action()
    ranks.barrier()
    return time.perf_counter() - began, time.process_time() - processor


def open_engine(stage: int, width: int, ranks: distributed.Ranks) -> Engine:
    """A model with random weights and random moments: memory that was never written would be copied too fast."""
    encoder = {"hidden_size": width, "num_attention_heads": width // 64, "intermediate_size": 4 * width}
    config = Config.model_validate(
        {
            "data": {"path": "unused", "sequence_length": 512},
            "model": {"encoder": encoder | {"num_hidden_layers": 12, "max_position_embeddings": 512}},
            "batch": {"global_batch_size": ranks.world_size, "micro_batch_size": 1},
            "engine": {"ds_config": str(ROOT / f"ds_configs/zero{stage}.json"), "precision": "fp32"},
        }
    )
    ordinary = np.arange(5, VOCABULARY)
    special = {name: number for number, name in enumerate(("pad", "unk", "cls", "sep", "mask"))}
    module = build_objective(config, Vocabulary(VOCABULARY, special, ordinary, most_frequent_id=7, unigram_entropy=4.0))
    state = {table: {name: torch.rand(p.shape) for name, p in module.named_parameters()} for table in TABLES}
    engine = Engine(module, config, load_ds_config(config, ranks.world_size), ranks)
    engine.load_state(state, updates=1)
    return engine


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), Path(sys.argv[4]))
