"""Whether this rank can read the shards: their sizes, and a sample of their blocks, verified to the last byte."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from data_pipeline.checks.check_blocks import Piece, Rules, piece_checker
from data_pipeline.manifest import BlockEntry, Manifest, ShardEntry
from train.data.data_set import DataSet
from train.distributed import Ranks
from train.preflight.findings import Finding, ok, wrong

_BLOCKS = 16  # of each rank and data set
_BLOCKS_OF_STORE = 2
_WAY_OUT = "copy the data set again; `python -m data_pipeline verify` reads all of it"


def sample_shards(ranks: Ranks, sets: Sequence[DataSet]) -> list[Finding]:
    """Other blocks on every rank, the same ones at every call. Raises DataError or UserError for a remote block."""
    problems: list[str] = []
    blocks = 0
    for data_set in sets:
        sample = _sample(data_set, ranks.rank)
        blocks += len(sample)
        if data_set.store is not None:
            for shard, _, block in sample:
                data_set.store.get(shard.name, block)
            continue
        problems += _sizes(data_set.manifest) if ranks.local_rank == 0 else []
        problems += [line for shard, number, block in sample for line in _read(data_set.manifest, shard, number, block)]
    if problems:
        more = f"; and {len(problems) - 1} more problems" if len(problems) > 1 else ""
        return [wrong(f"shards: {problems[0]}{more}: {_WAY_OUT}")]
    shards = sum(len(split.shards) for data_set in sets for split in data_set.manifest.splits.values())
    return [ok(f"shards: {shards} of the right size, {blocks} blocks for each rank verified")]


def _sample(data_set: DataSet, rank: int) -> list[tuple[ShardEntry, int, BlockEntry]]:
    """Shard, number of the block in its split, block."""
    each = list(_blocks(data_set.manifest))
    size = min(len(each), _BLOCKS if data_set.store is None else _BLOCKS_OF_STORE)
    return random.Random(f"{data_set.manifest.identity} {rank}").sample(each, size)  # noqa: S311 - no secret


def _blocks(manifest: Manifest) -> Iterator[tuple[ShardEntry, int, BlockEntry]]:
    for split in manifest.splits.values():
        pairs = ((shard, block) for shard in split.shards for block in shard.blocks)
        yield from ((shard, number, block) for number, (shard, block) in enumerate(pairs))


def _sizes(manifest: Manifest) -> Iterator[str]:
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        path = manifest.directory / shard.name
        try:
            size = path.stat().st_size
        except OSError as error:
            yield f"{path}: cannot read: {error.strerror}"
            continue
        if size != shard.bytes:
            yield f"{path}: {size:,} bytes, the manifest says {shard.bytes:,}"


def _read(manifest: Manifest, shard: ShardEntry, number: int, block: BlockEntry) -> list[str]:
    outside = {name: manifest.special_ids[name] for name in ("pad", "cls", "sep", "mask")}
    rules = Rules(manifest.token_dtype, manifest.vocabulary_size, outside)
    piece = Piece(manifest.directory / shard.name, shard.bytes, (block,), number, block.offset, is_last=False)
    return piece_checker(rules)(piece).problems
