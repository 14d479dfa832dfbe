"""The model on held-out documents: the same rows, in the same order, with the same masks every time."""

from __future__ import annotations

import numpy as np

from data_pipeline.manifest import Manifest
from train.config import Config
from train.data.stream import validation_batches
from train.distributed import Ranks
from train.engine import Engine
from train.monitor.recorder import Record, head_metrics, summed, total_loss

SPLIT = "validation"


def has_validation(manifest: Manifest) -> bool:
    """Whether the data set was built with held-out documents."""
    return SPLIT in manifest.splits and manifest.splits[SPLIT].documents > 0


def validate(engine: Engine, config: Config, manifest: Manifest, ranks: Ranks) -> Record:
    """Loss and accuracy of each head over the first `validation.max_rows` held-out rows, under "validation_...".

    The numbers do not depend on the number of ranks: a global sum over a global count.
    """
    objective = engine.module
    targets_H = np.zeros(len(objective.heads), dtype=np.int64)
    sums = []
    engine.eval()
    for batch in validation_batches(
        manifest,
        SPLIT,
        config.data.sequence_length,
        config.batch.micro_batch_size,
        ranks.rank,
        ranks.world_size,
        config.validation.max_rows,
    ):
        targets_H += objective.target_counts(batch.lengths_D)
        sums.append(engine.evaluate(batch.to(ranks.device)))
    engine.train()
    losses_H = sum(losses_H.double() for losses_H, _ in sums)
    hits_H2 = sum(hits_H2 for _, hits_H2 in sums)
    [sums_H3] = summed([(losses_H, hits_H2)], ranks)  # type: ignore[list-item]  # never empty: a split has rows
    record = head_metrics(objective.heads, sums_H3, tuple(ranks.sum(targets_H.tolist())))
    record["loss"] = total_loss(record, objective.heads, objective.weights())
    return {f"{SPLIT}_{name}": value for name, value in record.items()}
