"""What a run will read, in sentences and in its first rows, before anybody pays for it.

Nothing is written, except that remote data come by way of data.cache, as in the run.

Legend: K sources, N rows, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data_pipeline.manifest import Manifest
from data_pipeline.report import counted
from train.config import Config, global_batch_size
from train.data.batch import Batch
from train.data.damage import is_too_much
from train.data.data_set import DataSet
from train.data.epochs import EpochWalk
from train.data.mixture import MixtureWalk
from train.data.order import WINDOW_BLOCKS, Cursor, Indices, Share, epoch_order
from train.data.packing import PackingRules, RowPlan
from train.data.plan_cache import open_plan
from train.data.splits import find_split
from train.errors import DataError, UserError
from train.seen_rows import LEGEND, masking_only, row_lines, token_names
from train.training_data import (
    SPLIT,
    close_stores,
    describe_cache,
    length_at,
    local_folders,
    open_data_sets,
    open_walk,
    packing_rules,
    shrink_at,
    stretches,
    token_shares,
    weights_at,
)
from train.vocabulary import Vocabulary, load_vocabulary

_ONE_ROW = Share(rank=0, world_size=1, micro_batch_size=1, global_batch_size=1)


@dataclass(frozen=True, slots=True)
class Leg:
    """Optimizer steps [step, end) that read as many rows of one length in one mixture."""

    step: int
    end: int
    rows_per_step: int
    weights_K: tuple[float, ...]  # as shares of the rows: they add up to 1
    plans_K: tuple[RowPlan, ...]
    rows_K: tuple[int, ...]  # read of each source

    @property
    def length(self) -> int:
        """Most tokens of a row."""
        return self.plans_K[0].rules.sequence_length

    @property
    def tokens(self) -> int:
        """Tokens in the rows, [CLS] and [SEP] included: exact for whole epochs, the average for the rest."""
        return round(sum(rows * plan.tokens / plan.rows for rows, plan in zip(self.rows_K, self.plans_K, strict=True)))

    @property
    def lost_rows(self) -> int:
        """Rows of blocks that the plans could not read, over whole epochs exact, else their share."""
        read = zip(self.rows_K, self.plans_K, strict=True)
        return round(sum(rows * unread_rows(plan) / plan.rows for rows, plan in read))


def report(config: Config, rows_shown: int) -> Iterator[str]:
    """What the model will see, line by line: the data, the rows, the steps, the order, and `rows_shown` rows.

    Raises UserError and DataError as the run would; DataError at the end, after all lines, for damage that would end
    the run or that lies in the rows shown.
    """
    if rows_shown < 0:
        raise UserError(f"--rows {rows_shown}: give 0 or more")
    sets = open_data_sets(config, local_folders(config))
    try:
        # Names a damaged tokenizer before anything is planned.
        vocabulary = load_vocabulary(*(data_set.manifest for data_set in sets), shares=token_shares(config))
        yield from _report(config, sets, vocabulary, rows_shown)
    finally:
        close_stores(sets)


def _report(config: Config, sets: Sequence[DataSet], vocabulary: Vocabulary, rows_shown: int) -> Iterator[str]:
    walk, plans = _open(config, sets)
    names_K = [f"Source {source.name}" for source in config.data.sources] or ["The training split"]
    legs = follow(config, walk, [data_set.manifest for data_set in sets], plans)
    if not legs:
        raise UserError("the data are at their end before the first step; lower batch.global_batch_size")
    yield from _data(config, names_K, sets, legs)
    yield from _run(config, names_K, legs)
    yield _shuffle(config, walk, legs[0])
    objective, names_V = masking_only(config, vocabulary), token_names(sets[0].manifest)
    if rows_shown:
        yield LEGEND
    damaged = 0
    for number, (batch, source) in enumerate(_first_rows(walk, legs[0], rows_shown)):
        yield f"Row {number} of step 0, {names_K[source]}: {_filled(batch, legs[0].length)}"
        yield from row_lines(batch, objective, names_V)
        damaged += batch.damaged_rows
    _refuse_damage(config, walk, legs, damaged)


# ---------------------------------------------------------------------------------------------------------------------
# What the run reads


Plans = dict[tuple[str, PackingRules], RowPlan]  # by the identity of the data set and the rules
Walk = EpochWalk | MixtureWalk


def _open(config: Config, sets: Sequence[DataSet]) -> tuple[Walk, Plans]:
    """The walk of the run, and its plans by data set and rules."""
    plans: Plans = {}

    def plan_of(data_set: DataSet, rules: PackingRules) -> RowPlan:
        key = data_set.manifest.identity, rules
        if key not in plans:
            plans[key] = open_plan(data_set.manifest, SPLIT, rules, data_set.store)
        return plans[key]

    return open_walk(config, sets, plan_of, word_starts=True), plans


def follow(config: Config, walk: Walk, manifests: Sequence[Manifest], plans: Plans) -> list[Leg]:
    """Go the way of the run, step by step, without reading a row; ends early where the data do."""
    cursor, legs = walk.start, list[Leg]()
    for start, end in stretches(config):
        rows = global_batch_size(config.batch, start)
        share, rules = Share(0, 1, rows, rows), packing_rules(config, length_at(config, start))
        plans_K = tuple(plans[manifest.identity, rules] for manifest in manifests)
        begin = cursor = walk.at(cursor, start)
        step = start
        while step < end and not walk.is_over(cursor, share):
            step, cursor = step + 1, walk.advance(cursor, share)
        if step > start:
            read_K = _rows_read(walk, cursor, plans_K) - _rows_read(walk, begin, plans_K)
            weights_K = weights_at(config, start)
            shares_K = tuple(weight / sum(weights_K) for weight in weights_K)
            size = rows // shrink_at(config, start)
            legs.append(Leg(start, step, size, shares_K, plans_K, tuple(read_K.tolist())))
        if step < end:
            break
    return legs


def unread_rows(plan: RowPlan) -> int:
    """Rows of an epoch whose blocks could not be read when they were planned."""
    return int(plan.rows_B[[block for block, _ in plan.unread]].sum())


def _rows_read(walk: Walk, cursor: Cursor, plans_K: Sequence[RowPlan]) -> Indices:
    """Rows of each source before `cursor`, over all its epochs."""
    epochs_K = walk.progress(cursor).values()
    return np.array([round(epochs * plan.rows) for epochs, plan in zip(epochs_K, plans_K, strict=True)])


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def _data(config: Config, names_K: Sequence[str], sets: Sequence[DataSet], legs: Sequence[Leg]) -> Iterator[str]:
    manifests = [data_set.manifest for data_set in sets]
    for name, data_set in zip(names_K, sets, strict=True):
        yield _data_set(name, data_set)
    sentences, warnings = describe_cache(config, sets)
    yield from (*sentences, *warnings)
    by_length = {leg.length: leg.plans_K for leg in legs}
    for plans_K in by_length.values():
        for name, manifest, plan in zip(names_K, manifests, plans_K, strict=True):
            yield from _packing(name, manifest, plan, config.run.seed)


def _data_set(name: str, data_set: DataSet) -> str:
    manifest, store = data_set.manifest, data_set.store
    split, place = find_split(manifest, SPLIT), store.name("").rstrip("/") if store else manifest.directory
    blocks = sum(len(shard.blocks) for shard in split.shards)
    return (
        f"{name} ({place}, identity {manifest.identity[:12]}) has {counted(split.documents, 'document')}, "
        f"{counted(split.tokens, 'token')} without [CLS] and [SEP], in {counted(blocks, 'block')}, "
        f"{counted(len(split.shards), 'shard')}."
    )


def _packing(name: str, manifest: Manifest, plan: RowPlan, seed: int) -> Iterator[str]:
    blocks = [block for shard in find_split(manifest, SPLIT).shards for block in shard.blocks]
    planned = sum(block.documents for block in blocks) - sum(blocks[block].documents for block, _ in plan.unread)
    pieces, rules, order = len(plan.piece_length_P), plan.rules, epoch_order(plan.rows_B, seed, 0)
    yield (
        f"{name} at sequence length {rules.sequence_length}: {counted(plan.rows, 'row')} an epoch with "
        f"{counted(plan.tokens, 'token')}, [CLS] and [SEP] included; {plan.padding_share:.2%} of their room is padding."
    )
    yield (
        f"  {counted(planned, 'document')} become {counted(pieces, 'piece')}: {counted(pieces - planned, 'cut')} in "
        f"documents longer than {rules.longest_piece} tokens, {counted(rules.piece_overlap, 'token')} repeated at each."
    )
    yield (
        f"  Order: {counted(len(blocks), 'block')} in {counted(order.lanes, 'lane')}, shuffled in windows of "
        f"{counted(order.window_rows, 'row')} ({WINDOW_BLOCKS} blocks' worth) of a lane."
    )
    if plan.unread:
        lost = unread_rows(plan)
        yield (
            f"  Damage: {counted(len(plan.unread), 'block')} cannot be read, so {lost:,} of {plan.rows:,} rows "
            f"({lost / plan.rows:.2%}) are left out of every epoch."
        )


def _run(config: Config, names_K: Sequence[str], legs: Sequence[Leg]) -> Iterator[str]:
    for leg in legs:
        yield from _leg(names_K, leg)
    rows_K, steps = np.sum([leg.rows_K for leg in legs], axis=0).tolist(), legs[-1].end
    if steps < config.run.steps:
        yield f"The data end after {counted(steps, 'step')} of {config.run.steps:,}: data.when_exhausted is stop."
    tokens = sum(leg.tokens for leg in legs)
    yield f"In all {counted(steps, 'step')} read {counted(sum(rows_K), 'row')}, about {counted(tokens, 'token')}."
    for k, (name, rows) in enumerate(zip(names_K, rows_K, strict=True)):
        epochs = sum(leg.rows_K[k] / leg.plans_K[k].rows for leg in legs)
        share = f" ({rows / sum(rows_K):.2%} of all)" if len(names_K) > 1 else ""
        yield f"  {name}: {counted(rows, 'row')}{share}, {epochs:.2f} epochs."


def _leg(names_K: Sequence[str], leg: Leg) -> Iterator[str]:
    steps, rows = leg.end - leg.step, sum(leg.rows_K)
    yield (
        f"Steps {leg.step:,} to {leg.end - 1:,}: {counted(leg.rows_per_step, 'row')} of at most "
        f"{counted(leg.length, 'token')} a step, at most {leg.rows_per_step * leg.length:,} tokens, about "
        f"{leg.tokens / steps:,.0f} of them filled; {counted(rows, 'row')}, about {leg.tokens:,} tokens in all."
    )
    if len(names_K) > 1:
        shares = zip(names_K, leg.weights_K, leg.rows_K, strict=True)
        yield from (f"  {name}: asked {asked:.2%} of the rows, gets {got / rows:.2%}." for name, asked, got in shares)


def _shuffle(config: Config, walk: Walk, leg: Leg) -> str:
    """A source is read in its own order, so the first batch holds the first rows of each."""
    share = Share(0, 1, leg.rows_per_step, leg.rows_per_step)
    read_K = _rows_read(walk, walk.advance(walk.start, share), leg.plans_K)
    distinct, expected, blocks = 0, 0.0, 0
    for plan, read in zip(leg.plans_K, read_K.tolist(), strict=True):
        order, rows = epoch_order(plan.rows_B, config.run.seed, 0), min(read, plan.rows)
        distinct += len(np.unique(plan.blocks_of(order.rows_at(np.arange(rows)))))
        expected += float((1 - (1 - plan.rows_B / plan.rows) ** rows).sum())
        blocks += len(plan.rows_B)
    return (
        f"Shuffle: the first global batch has {counted(sum(read_K.tolist()), 'row')} from {distinct:,} of "
        f"{counted(blocks, 'block')}; rows drawn at random from all would come from about {expected:,.1f}."
    )


def _first_rows(walk: Walk, leg: Leg, rows_shown: int) -> Iterator[tuple[Batch, int]]:
    """The first rows of step 0 in the order of the stream, each with the number of its source."""
    cursor = walk.start
    for _ in range(min(rows_shown, leg.rows_per_step)):
        if cursor.epoch:  # a data set of fewer rows than a batch
            break
        (batch,) = walk.batches(cursor, _ONE_ROW)
        before, cursor = cursor, walk.advance(cursor, _ONE_ROW)
        read_K = _rows_read(walk, cursor, leg.plans_K) - _rows_read(walk, before, leg.plans_K)
        yield batch, int(read_K.argmax())


def _filled(batch: Batch, length: int) -> str:
    if batch.damaged_rows:
        return "it lies in a damaged block, an empty document stands for it."
    return f"{counted(len(batch.lengths_D), 'document')}, {batch.tokens:,} of {length:,} tokens."


def _refuse_damage(config: Config, walk: Walk, legs: Sequence[Leg], damaged: int) -> None:
    """Raise DataError for damage that would end the run, or that was met in the rows shown."""
    lost, rows = sum(leg.lost_rows for leg in legs), sum(sum(leg.rows_K) for leg in legs)
    share, first = config.data.max_damaged_share, next(iter(walk.damage.values()), "")
    if is_too_much(lost, rows, share):
        raise DataError(f"{lost:,} of {rows:,} rows are damaged, above data.max_damaged_share {share}: {first}")
    if damaged:
        raise DataError(f"{damaged:,} of the rows shown are damaged: {first}")
