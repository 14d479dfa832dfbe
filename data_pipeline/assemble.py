"""One shard of a plan: its documents are gathered from the staged ranges and written, with a record that it is done.

Legend: T tokens of a block, D documents of a block, V vocabulary size; of a range: R documents, P paragraphs.
"""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.durable import write_whole
from data_pipeline.layout import SPLITS, BlockPlan, Kept, Selection, ShardPlan, select
from data_pipeline.manifest import BlockEntry, ShardEntry
from data_pipeline.shards import ShardWriter, encode_block
from data_pipeline.staging import StagedRange


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard for one worker."""

    output: Path
    records: Path  # folder of the records of finished shards
    plan: ShardPlan
    ranges: dict[int, Path]  # the staged ranges that it takes from
    selection: Selection
    vocabulary_size: int


def missing_shards(
    output: Path,
    records: Path,
    plans: Iterable[ShardPlan],
    ranges: Sequence[Path],
    selection: Selection,
    vocabulary_size: int,
) -> Iterator[ShardTask]:
    """The tasks for the shards that are not finished."""
    for plan in plans:
        if not (_record(records, plan).exists() and (output / plan.name).exists()):
            needed = {piece.range: ranges[piece.range] for block in plan.blocks for piece in block.pieces}
            yield ShardTask(output, records, plan, needed, selection, vocabulary_size)


def write_shard(task: ShardTask) -> None:
    """Write a shard and its record. Raises UserError when the disk refuses."""
    counts_V = np.zeros(task.vocabulary_size, np.int64)
    with ShardWriter(task.output / task.plan.name) as writer:
        for number, block in enumerate(task.plan.blocks, start=task.plan.first_block):
            ids_T, starts_T, lengths_D = _gather(task, block)
            offsets_D1 = np.concatenate([np.zeros(1, np.uint32), np.cumsum(lengths_D)]).astype(np.uint32)
            writer.write(encode_block(number, ids_T, offsets_D1, starts_T, block.source), ids_T.size, len(lengths_D))
            counts_V += np.bincount(ids_T, minlength=counts_V.size)
        entry = writer.finish()
    counts = io.BytesIO()
    np.save(counts, counts_V)
    write_whole(_counts(task.records, task.plan), counts.getvalue())
    write_whole(_record(task.records, task.plan), json.dumps(asdict(entry)).encode())


def finished_shard(records: Path, plan: ShardPlan) -> tuple[ShardEntry, npt.NDArray[np.int64]]:
    """The manifest's entry of a finished shard, and how often each id occurs in it, int64[V]."""
    entry = json.loads(_record(records, plan).read_bytes())
    blocks = tuple(BlockEntry(**block) for block in entry.pop("blocks"))
    counts_V: npt.NDArray[np.int64] = np.load(_counts(records, plan), allow_pickle=False)
    return ShardEntry(**entry, blocks=blocks), counts_V


def _record(records: Path, plan: ShardPlan) -> Path:
    return records / f"{plan.name}.json"


def _counts(records: Path, plan: ShardPlan) -> Path:
    return records / f"{plan.name}.npy"


def _gather(task: ShardTask, block: BlockPlan) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """ids_T, starts_T and lengths_D of a block."""
    ids: list[npt.NDArray[Any]] = []
    starts: list[npt.NDArray[np.bool_]] = []
    lengths: list[npt.NDArray[np.int64]] = []
    for piece in block.pieces:
        staged, kept = _opened(task.ranges[piece.range], piece.range, task.selection)
        documents = np.flatnonzero(kept.split_D == SPLITS.index(task.plan.split))[piece.start : piece.stop]
        runs = _token_runs(staged, kept, documents)
        ids += [staged["ids_T"][start:stop] for start, stop in runs]
        starts += [staged["starts_T"][start:stop] for start, stop in runs]
        lengths.append(kept.tokens_D[documents])
    return np.concatenate(ids), np.concatenate(starts), np.concatenate(lengths)


@lru_cache(maxsize=2)  # the blocks of a shard take from one range after the other
def _opened(path: Path, index: int, selection: Selection) -> tuple[StagedRange, Kept]:
    staged = StagedRange(path)
    return staged, select(staged, index, selection)


def _token_runs(staged: StagedRange, kept: Kept, documents: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where the tokens of these documents lie in the range, as few (start, stop) as possible."""
    chosen_R = np.zeros(len(kept.split_D), np.bool_)
    chosen_R[documents] = True
    chosen_P = np.repeat(chosen_R, staged["paragraphs_D"]) & kept.stays_P
    ends_P = np.cumsum(staged["tokens_P"].astype(np.int64))
    changes = np.flatnonzero(np.diff(chosen_P.astype(np.int8), prepend=0, append=0))
    tokens_P1 = np.concatenate([np.zeros(1, np.int64), ends_P])
    bounds = tokens_P1[changes].reshape(-1, 2)
    return [(start, stop) for start, stop in bounds.tolist()]
