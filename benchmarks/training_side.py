"""One side of training.py: a process that trains some steps whenever it hears "go", and says how long they took.

    python benchmarks/training_side.py SIDE-AS-JSON FOLDER-OF-SHARDS

What a side needs is imported before its memory is first looked at, and nothing else is.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

THREADS = 2


@dataclass(frozen=True, slots=True)
class Side:
    """One way to train one model."""

    name: str
    kind: str  # trainer, plain or engine
    objective: str  # mlm, mae, or mae-mask-tokens: the encoder sees [MASK] where mae drops a token
    layers: int
    width: int
    dropout: float = 0.1
    attention_dropout: float = 0.0
    zero_stage: int = 0
    rows: int = 8
    length: int = 512
    steps: int = 2  # of a round


class Rounds:
    """Counts the steps of a side, and answers once a round is over."""

    def __init__(self, steps: int) -> None:
        self.most = steps
        self.wait()

    def wait(self) -> bool:
        """Wait for the next word; whether it is the last one."""
        word = sys.stdin.readline().strip()
        self.tokens = self.steps = 0
        self.began = time.perf_counter(), time.process_time()
        return word != "go"

    def tick(self, tokens: int) -> bool:
        """After each step, with its tokens; whether it was the last."""
        self.tokens, self.steps = self.tokens + tokens, self.steps + 1
        if self.steps < self.most:
            return False
        wall, processor = time.perf_counter() - self.began[0], time.process_time() - self.began[1]
        print(json.dumps({"tokens": self.tokens, "wall": wall, "processor": processor}), flush=True)
        return self.wait()


def work(side: Side, folder: Path) -> None:
    """Be one side until the word is another than "go"; then say the peak of memory."""
    import torch

    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    train = {"trainer": by_trainer, "plain": by_plain_loop, "engine": by_engine}[side.kind](side, folder)
    imports = peak_megabytes()
    train()
    print(json.dumps({"peak": peak_megabytes(), "imports": imports}), flush=True)


def peak_megabytes() -> float:
    """VmHWM of Linux: the most memory that was resident at once."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def by_trainer(side: Side, folder: Path) -> Callable[[], None]:
    """Import what the peer needs; what trains it."""
    import trainer_peer
    from transformers import BertConfig

    from data_pipeline.manifest import load_manifest

    def train() -> None:
        manifest = load_manifest(folder)
        config = BertConfig(
            vocab_size=manifest.vocabulary_size, attention_probs_dropout_prob=side.attention_dropout, **_sizes(side)
        )
        rows = trainer_peer.GroupedRows(manifest, side.length, 4_096)
        model, places = trainer_peer.build_model(config), {"use_cpu": True, "dataloader_pin_memory": False}
        trainer_peer.train(model, rows, manifest, side.rows, Rounds(side.steps).tick, learning_rate=1e-4, **places)

    return train


def by_plain_loop(side: Side, folder: Path) -> Callable[[], None]:
    """Import what our objectives need; what trains one."""
    import torch
    from mask_token_encoder import MaskTokenEncoder
    from plain_training import fp32_update, open_stream, steps

    from data_pipeline.manifest import load_manifest
    from train.objectives import REGISTRY, build_objective
    from train.vocabulary import load_vocabulary

    REGISTRY["mae-mask-tokens"] = MaskTokenEncoder

    def train() -> None:
        manifest, config = load_manifest(folder), _config(side)
        vocabulary = load_vocabulary(manifest)
        objective = build_objective(config, vocabulary)
        stream, update = open_stream(manifest, config), fp32_update(objective, config)
        _run(steps(objective, stream, update, torch.device("cpu")), Rounds(side.steps))
        stream.close()

    return train


def by_engine(side: Side, folder: Path) -> Callable[[], None]:
    """Import DeepSpeed; what trains an objective under it."""
    import numpy as np
    import torch
    from plain_training import open_stream

    from data_pipeline.manifest import load_manifest
    from train import distributed
    from train.ds_config import load_ds_config
    from train.engine import Engine
    from train.objectives import build_objective
    from train.vocabulary import load_vocabulary

    def train() -> None:
        manifest, config = load_manifest(folder), _config(side)
        objective = build_objective(config, load_vocabulary(manifest))
        engine = Engine(objective, config, load_ds_config(config, 1), distributed.start())
        stream = open_stream(manifest, config)

        def steps() -> Iterator[Any]:
            while True:
                [batch], _ = next(stream)
                moved = batch.to("cpu")
                selection = engine.module.select(moved, 0)
                counts_H = np.maximum(1, engine.module.target_counts(selection))
                scale_H = torch.from_numpy((np.array(objective.weights()) / counts_H).astype(np.float32))
                engine.micro_step(moved, selection, scale_H, last=True)
                yield batch

        _run(steps(), Rounds(side.steps))
        stream.close()

    return train


def _run(steps: Iterator[Any], rounds: Rounds) -> None:
    for step in steps:
        if rounds.tick(step.tokens):
            return


def _config(side: Side) -> Any:
    """The run configuration of our sides."""
    from train.config import Config

    encoder = _sizes(side) | {"max_position_embeddings": 512}
    name = "mae" if side.objective.startswith("mae") else side.objective
    config = {
        "data": {"path": "unused", "sequence_length": side.length},
        "model": {"encoder": encoder, "decoder": {"num_hidden_layers": 2}, "gradient_checkpointing": False},
        "objective": {"name": name, "drop_ratio": 0.5},
        "batch": {"global_batch_size": side.rows, "micro_batch_size": side.rows},
        "engine": {"ds_config": str(ROOT / f"ds_configs/zero{side.zero_stage}.json"), "precision": "fp32"},
    }
    found = Config.model_validate(config)
    if name == side.objective:
        return found
    return found.model_copy(update={"objective": found.objective.model_copy(update={"name": side.objective})})


def _sizes(side: Side) -> dict[str, Any]:
    """In names that transformers and our configuration share; heads of 64 channels as in BERT."""
    sizes = {"hidden_size": side.width, "num_hidden_layers": side.layers, "intermediate_size": 4 * side.width}
    return sizes | {"num_attention_heads": side.width // 64 or 1, "hidden_dropout_prob": side.dropout}


if __name__ == "__main__":
    work(Side(**json.loads(sys.argv[1])), Path(sys.argv[2]))
