"""The model on held-out documents: the same rows, in the same order, with the same masks every time."""

from __future__ import annotations

from itertools import chain

import numpy as np

from train.config import Config
from train.data.data_set import DataSet
from train.data.held_out import HeldOutRows
from train.distributed import Ranks, together
from train.engine import Engine
from train.monitor.recorder import Record, head_metrics, summed, total_loss
from train.training_data import packing_rules

SPLIT = "validation"


def open_held_out(data_set: DataSet, config: Config, ranks: Ranks) -> HeldOutRows | None:
    """The rows of this rank, planned once; None where the data set was built without held-out documents."""
    manifest = data_set.manifest
    if SPLIT not in manifest.splits or not manifest.splits[SPLIT].documents:
        return None
    micro, most = config.batch.micro_batch_size, config.validation.max_rows
    rules, store = packing_rules(config), data_set.store
    return HeldOutRows(manifest, SPLIT, rules, micro, ranks.rank, ranks.world_size, most, store)


def validate(engine: Engine, held_out: list[HeldOutRows], ranks: Ranks) -> Record:
    """Loss and accuracy of each head over the held-out rows, under "validation_...".

    The numbers do not depend on the number of ranks: a global sum over a global count. Raises UserError on all ranks
    where a store is away for too long.
    """
    objective = engine.module
    targets_H = np.zeros(len(objective.heads), dtype=np.int64)
    sums = []
    # Before the model runs: a rank whose store is away must not leave the others in the engine's collectives.
    batches = together(ranks, lambda: list(chain.from_iterable(held_out)))
    engine.eval()
    for batch in batches:
        targets_H += objective.target_counts(batch.lengths_D)
        sums.append(engine.evaluate(batch.to(ranks.device)))
    engine.train()
    losses_H = sum(losses_H.double() for losses_H, _ in sums)
    hits_H2 = sum(hits_H2 for _, hits_H2 in sums)
    [sums_H3] = summed([(losses_H, hits_H2)], ranks)  # type: ignore[list-item]  # never empty: a split has rows
    record = head_metrics(objective.heads, sums_H3, tuple(ranks.sum(targets_H.tolist())))
    record["loss"] = total_loss(record, objective.heads, objective.weights())
    return {f"{SPLIT}_{name}": value for name, value in record.items()}
