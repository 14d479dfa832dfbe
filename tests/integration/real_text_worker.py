"""A run on real text in several precisions, from the same weights over the same rows: the loss of every step.

Run on every rank with a data set and a file for the results.
"""

import json
import sys
from pathlib import Path

import torch

from data_pipeline.manifest import Manifest, load_manifest
from train import distributed
from train.config import Config
from train.config_file import load_config
from train.data.epochs import EpochWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, plan_rows
from train.ds_config import load_ds_config
from train.engine import Engine
from train.objectives import build_objective
from train.optimizer import learning_rate
from train.vocabulary import load_vocabulary

LENGTH, ROWS, STEPS = 64, 16, 100
CASES = {
    "fp32": ("zero2", "fp32", False),
    "bf16": ("zero3", "bf16", False),
    "autocast": ("zero2-offload", "bf16", True),
}
PRESET = Path(__file__).parents[2] / "configs" / "mae-base.yaml"
SMALL = [
    f"data.sequence_length={LENGTH}",
    f"run.steps={STEPS}",
    "schedule.warmup_steps=10",
    "schedule.name=constant",
    "optimizer.learning_rate=5e-4",
    f"batch.global_batch_size={ROWS}",
    f"batch.micro_batch_size={ROWS}",
    "model.encoder.hidden_size=96",
    "model.encoder.num_hidden_layers=2",
    "model.encoder.num_attention_heads=3",
    "model.encoder.intermediate_size=256",
    "model.encoder.max_position_embeddings=66",
    "model.encoder.hidden_dropout_prob=0.0",
    "model.encoder.initializer_range=0.06",  # 0.02 is for widths of several hundred
    "model.decoder.num_hidden_layers=1",
    *(f"model.decoder.{name}=null" for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
    "model.gradient_checkpointing=false",
]


def losses(config: Config, manifest: Manifest, ranks: distributed.Ranks) -> list[float]:
    """Loss per target of every step."""
    torch.manual_seed(0)
    module = build_objective(config, load_vocabulary(manifest))
    engine = Engine(module, config, load_ds_config(config, ranks.world_size), ranks)
    walk = EpochWalk(manifest, "train", plan_rows(manifest, "train", PackingRules(LENGTH)), config.run.seed)
    cursor, share, curve = Cursor(0, 0), Share(0, 1, ROWS, ROWS), []
    for step in range(STEPS):
        [batch] = walk.batches(cursor, share)
        cursor, batch = walk.advance(cursor, share), batch.to("cpu")
        selection = engine.module.select(batch, step)
        scale_H = 1.0 / torch.from_numpy(engine.module.target_counts(selection))
        engine.set_learning_rate(learning_rate(step, config))
        losses_H, _ = engine.micro_step(batch, selection, scale_H, last=True)
        curve.append(float((losses_H * scale_H).sum()))
    return curve


def main(data: Path, output: Path) -> None:
    """Write the curves as JSON; the test judges."""
    torch.set_num_threads(1)
    ranks = distributed.start()
    manifest = load_manifest(data)
    curves = {}
    for case, (file, precision, autocast) in CASES.items():
        engine = f"engine.ds_config=ds_configs/{file}.json", f"engine.precision={precision}"
        autocast_field = f"engine.autocast={str(autocast).lower()}"
        config = load_config(PRESET, [f"data.path={data}", *SMALL, *engine, autocast_field])
        curves[case] = losses(config, manifest, ranks)
    output.write_text(json.dumps(curves))
    distributed.finish()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
