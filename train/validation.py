"""The model on held-out documents: the same rows, in the same order, with the same masks every time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.data.data_set import DataSet
from train.data.held_out import HeldOutRows
from train.distributed import Ranks, together
from train.engine import Engine
from train.monitor.recorder import Record, head_metrics, summed, total_loss
from train.objectives.retromae import RetroMae
from train.signals import StopRequest
from train.training_data import packing_rules

SPLIT = "validation"
_SHUFFLED_BATCHES = 4


def open_held_out(data_set: DataSet, config: Config, ranks: Ranks) -> HeldOutRows | None:
    """The rows of this rank, planned once; None where the data set was built without held-out documents."""
    manifest = data_set.manifest
    if SPLIT not in manifest.splits or not manifest.splits[SPLIT].documents:
        return None
    micro, most = config.batch.micro_batch_size, config.validation.max_rows
    rules, store = packing_rules(config), data_set.store
    words = config.objective.needs_word_starts
    return HeldOutRows(manifest, SPLIT, rules, micro, ranks.rank, ranks.world_size, most, store, word_starts=words)


def validate(engine: Engine, held_out: list[HeldOutRows], ranks: Ranks, stop: StopRequest) -> Record | None:
    """Loss and accuracy of each head over the held-out rows, under "validation_...".

    The numbers do not depend on the number of ranks: a global sum over a global count. None, on all ranks, where any
    of them was asked to stop before the last batch: a part of the rows is another measure. Raises UserError on all
    ranks where a store is away for too long.
    """
    objective = engine.module
    targets_H = np.zeros(len(objective.heads), dtype=np.int64)
    sums = []
    # Before the model runs: a rank whose store is away must not leave the others in the engine's collectives.
    batches = together(ranks, lambda: list(_read(held_out, ranks)))
    engine.eval()
    for batch in batches:
        if any(ranks.sum([int(stop.reason is not None)])):
            engine.train()
            return None
        moved = batch.to(ranks.device)
        selection = objective.select(moved)
        sums.append(engine.evaluate(moved, selection))
        targets_H += objective.target_counts(selection)
    shuffled = _with_states_of_others(engine, batches, ranks)
    engine.train()
    losses_H = sum(losses_H.double() for losses_H, _ in sums)
    hits_H2 = sum(hits_H2 for _, hits_H2 in sums)
    [sums_H3] = summed([(losses_H, hits_H2)], ranks)  # type: ignore[list-item]  # never empty: a split has rows
    record = head_metrics(objective.heads, sums_H3, tuple(ranks.sum(targets_H.tolist())))
    record["loss"] = total_loss(record, objective.heads, objective.weights())
    return {f"{SPLIT}_{name}": value for name, value in (record | shuffled).items()}


def _read(held_out: list[HeldOutRows], ranks: Ranks) -> Iterator[Batch]:
    for batch in chain.from_iterable(held_out):
        ranks.pulse.says("reads held-out documents")
        yield batch


def _with_states_of_others(engine: Engine, batches: list[Batch], ranks: Ranks) -> Record:
    """The loss of RetroMAE's decoder when each document gets the [CLS] state of another one, over a few batches.

    Where it is no higher than with the document's own, the state carries nothing.
    """
    objective = engine.module
    if not isinstance(objective, RetroMae):
        return {}
    head = objective.heads.index("decoder")
    losses, targets = torch.zeros(len(objective.heads), dtype=torch.float64, device=ranks.device), 0
    for batch in batches[:_SHUFFLED_BATCHES]:
        moved = batch.to(ranks.device)
        selection = objective.shuffled(objective.select(moved))
        losses += engine.evaluate(moved, selection)[0].double()
        targets += int(objective.target_counts(selection)[head])
    [sums_H3] = summed([(losses, torch.zeros(len(losses), 2, dtype=torch.int64, device=ranks.device))], ranks)
    return {"decoder_shuffled_loss": sums_H3[head][0] / max(1, ranks.sum([targets])[0])}
