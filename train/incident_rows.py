"""The rows of an incident of a run, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.checks.inspect import words_line
from data_pipeline.report import counted
from train.config import Config
from train.data.batch import Batch, make_batch
from train.data.data_set import DataSet
from train.data.epochs import ONLY_SOURCE, EpochWalk
from train.data.plan_cache import open_plan
from train.errors import UserError
from train.monitor.events import FILE
from train.monitor.incidents import read_incidents
from train.seen_rows import token_names
from train.training_data import SPLIT, close_stores, local_folders, open_data_sets, packing_rules


def incident_rows(config: Config, step: int) -> Iterator[str]:
    """Line by line: what happened at optimizer step `step` of the run in `config.run.directory`, and the rows of its
    suspects, or all rows of its global batch where none is named.

    Raises UserError where nothing happened at that step, DataError where the data cannot be read.
    """
    incident = _find(Path(config.run.directory) / FILE, step)
    names = incident.get("suspects") or incident["rows"]
    which = "suspect row" if incident.get("suspects") else "row of its global batch"
    yield f"Step {step}, {incident['kind']} of {incident['time']}: {len(names)} x {which}."
    sets = open_data_sets(config, local_folders(config))
    try:
        yield from _rows(config, sets, names, incident["sequence_length"])
    finally:
        close_stores(sets)


def _find(path: Path, step: int) -> dict[str, Any]:
    incidents = read_incidents(path)
    found = [incident for incident in incidents if incident["step"] == step]
    if not found:
        steps = ", ".join(str(number) for number in sorted({incident["step"] for incident in incidents})[:20])
        raise UserError(f"--incident {step}: {path} has none of that step; it has some of {steps or 'no step'}")
    return found[-1]


def _rows(config: Config, sets: Sequence[DataSet], names: Sequence[str], length: int) -> Iterator[str]:
    names_V = token_names(sets[0].manifest)
    sources = [source.name for source in config.data.sources] or [ONLY_SOURCE]
    walks = {name: _walk(config, data_set, length) for name, data_set in zip(sources, sets, strict=True)}
    for name in names:
        source, epoch, row = name.split("/")
        if source not in walks:
            raise UserError(f"row {name}: data.sources has no {source} any more; give the configuration of the run")
        walk = walks[source]
        batch = make_batch(np.array([int(row)]), walk.plan, walk.reader, walk.special_ids, int(epoch))
        yield f"Row {name}: {counted(len(batch.lengths_D), 'document')}, {counted(batch.tokens, 'token')}."
        yield from _documents(batch, names_V)


def _walk(config: Config, data_set: DataSet, length: int) -> EpochWalk:
    plan = open_plan(data_set.manifest, SPLIT, packing_rules(config, length), data_set.store)
    return EpochWalk(data_set.manifest, SPLIT, plan, config.run.seed, store=data_set.store)


def _documents(batch: Batch, names_V: Sequence[str]) -> Iterator[str]:
    starts_T = [] if batch.word_starts_T is None else batch.word_starts_T.tolist()
    tokens_T = [names_V[i] for i in batch.ids_T.tolist()]
    for start, end in pairwise(batch.cu_seqlens_D1.tolist()):
        yield f"  {words_line(tokens_T[start:end], starts_T[start:end])}"
