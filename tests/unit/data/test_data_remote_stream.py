"""Training from a store: the rows of the local files, damage included, with few blocks open and few bytes kept."""

import os
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import Manifest
from train.data.data_set import DataSet
from train.data.epochs import EpochWalk
from train.data.held_out import HeldOutRows
from train.data.mixture import MixtureWalk, Stage
from train.data.order import Cursor, Indices, Share, epoch_order
from train.data.packing import PackingRules, plan_rows
from train.data.plan_cache import load_plan, store_plan
from train.data.reader import ShardReader
from train.data.remote import BlockStore
from train.data.stream import Step, TrainStream

pytest.importorskip("fsspec")

RULES = PackingRules(48)
SHARE = Share(rank=0, world_size=2, micro_batch_size=3, global_batch_size=12)


@pytest.fixture
def blocks(make_data_set: Callable[..., Manifest]) -> Manifest:
    """Two shards of 30 blocks each, and a validation split."""
    rng = np.random.default_rng(3)
    shards = [[rng.integers(1, 90, size=12).tolist() for _ in range(30)] for _ in range(2)]
    return make_data_set(shards, [[rng.integers(1, 90, size=9).tolist() for _ in range(3)]])


@pytest.fixture
def open_store(tmp_path: Path) -> Iterator[Callable[..., BlockStore]]:
    """A function that opens the folder of a data set as a store; all are closed at the end."""
    stores = []

    def open_it(manifest: Manifest, cache_bytes: int = 1 << 30, **options: Any) -> BlockStore:
        url, cache = f"file://{manifest.directory}", tmp_path / "cache"
        stores.append(BlockStore(url, manifest, cache, cache_bytes, **({"patience": 0.5} | options)))
        return stores[-1]

    yield open_it
    for store in stores:
        store.close()


def contents(steps: list[Step]) -> list[object]:
    """All that the model would see, and the cursors."""
    names = ("ids_T", "word_starts_T", "cu_seqlens_D1", "row_ids_D", "row_offsets_D")
    return [
        ([[getattr(batch, name).tolist() for name in names] + [batch.damaged_rows] for batch in batches], cursor)
        for batches, cursor in steps
    ]


def run(walk: EpochWalk | MixtureWalk, steps: int, share: Share = SHARE, skips: Mapping[int, int] = {}) -> list[object]:
    stream = TrainStream(walk, share, walk.start, sizes={6: 24, 23: 6}, skips=skips)
    taken = contents(list(islice(stream, steps)))
    stream.close()
    return taken


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 30_000, 1])
def test_a_stream_from_a_store_is_the_stream_of_the_files(
    blocks: Manifest, open_store: Callable[..., BlockStore], cache_bytes: int
) -> None:
    """Over more than one epoch; a cache of a few blocks, or of none, costs requests and changes nothing."""
    store = open_store(blocks, cache_bytes, keep=8)
    plan = plan_rows(blocks, "train", RULES, store=store)
    assert plan.digest == plan_rows(blocks, "train", RULES).digest
    steps = plan.rows // SHARE.global_batch_size + 5
    remote = run(EpochWalk(blocks, "train", plan, seed=4, store=store), steps)
    assert remote == run(EpochWalk(blocks, "train", plan, seed=4), steps)


def test_a_mixture_of_a_store_and_a_folder_is_the_mixture_of_folders(
    blocks: Manifest, data_set: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """Reference: the same stages without a store."""

    def mixture(store: BlockStore | None) -> MixtureWalk:
        walks = [(EpochWalk(blocks, "train", plan_rows(blocks, "train", RULES), seed=4, store=store))]
        walks += [EpochWalk(data_set, "train", plan_rows(data_set, "train", RULES), seed=4)]
        return MixtureWalk([Stage(0, tuple(walks), (3, 1)), Stage(20, tuple(walks), (1, 1))], ["a", "b"], seed=4)

    assert run(mixture(open_store(blocks, keep=8)), 60) == run(mixture(None), 60)


def test_skipped_batches_of_a_mixture_are_jumped_over_and_not_fetched(
    blocks: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """Reference: the mixture that reads all, without its steps 2 to 4; and no row of those is asked for ahead."""
    asked = set()

    class Walk(EpochWalk):
        def prefetch_rows(self, row_N: Indices) -> None:
            asked.update(row_N.tolist())
            super().prefetch_rows(row_N)

    plan = plan_rows(blocks, "train", RULES)
    walks = EpochWalk(blocks, "train", plan, seed=4), Walk(blocks, "train", plan, seed=4, store=open_store(blocks))
    stages = [[Stage(0, (walk,), (1,)), Stage(7, (walk,), (2,))] for walk in walks]
    whole, remote = (MixtureWalk(stage, ["a"], seed=4) for stage in stages)
    everything = run(whole, 8)
    assert run(remote, 3, skips={2: 3}) == [*everything[:2], everything[5]]
    skipped = {row for batches, _ in everything[2:5] for ids in batches for row in ids[3]}
    assert len(skipped) == 18 and not skipped & asked
    assert {row for batches, _ in everything[5:] for ids in batches for row in ids[3]} <= asked


def test_held_out_rows_from_a_store_are_those_of_the_files(
    blocks: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """Every batch, on both passes."""
    remote = HeldOutRows(blocks, "validation", RULES, 2, 0, 1, 100, open_store(blocks))
    local = HeldOutRows(blocks, "validation", RULES, 2, 0, 1, 100)
    for _ in range(2):
        assert [batch.ids_T.tolist() for batch in remote] == [batch.ids_T.tolist() for batch in local]


def test_damage_in_a_store_costs_the_rows_that_local_damage_costs(
    blocks: Manifest, open_store: Callable[..., BlockStore], messages: Callable[[], list[str]]
) -> None:
    """Tokens of one block, the bounds of another, a shard that ends early: the same fillers, each named once."""
    first, second = blocks.splits["train"].shards
    path = blocks.directory / first.name
    flip(path, first.blocks[3].offset + 1500)
    flip(path, first.blocks[5].offset + first.blocks[5].bytes - 3000)
    os.truncate(blocks.directory / second.name, second.blocks[-2].offset + 700)
    plan = plan_rows(blocks, "train", RULES, store=open_store(blocks))
    local = plan_rows(blocks, "train", RULES)
    assert plan.digest == local.digest
    assert [block for block, _ in plan.unread] == [block for block, _ in local.unread] != []
    steps = plan.rows // SHARE.global_batch_size
    remote = EpochWalk(blocks, "train", plan, seed=4, store=open_store(blocks))
    files = EpochWalk(blocks, "train", plan, seed=4)
    alone = Share(0, 1, 3, 12)  # a block is read by one rank
    assert run(remote, steps, alone) == run(files, steps, alone)
    assert set(remote.reader.damage) == set(files.reader.damage) >= {3, 58, 59}
    lines = [line for line in messages() if "its rows are left out" in line and f"file://{path}" in line]
    assert sum("the checksum is" in line for line in lines) == 1, "block 3; the others have no planned rows to read"


def test_a_block_of_another_layout_names_the_shard_and_the_block(
    blocks: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """A store whose block is what the manifest says but not what the plan was made from."""
    plan = plan_rows(blocks, "train", RULES)
    plan.piece_length_P[0] = 60_000
    reader = ShardReader(blocks, "train", plan, open_store(blocks))
    shard = blocks.splits["train"].shards[0].name
    with pytest.raises(DataError, match=rf"^file://.*/{shard}, block 000000000: the packing plan was made from other"):
        reader.block(0)


def test_a_store_that_is_away_ends_the_stream_with_its_line(
    blocks: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """Not damage: no row may be left out because of a network. A directory in the shard's place is no answer."""
    plan = plan_rows(blocks, "train", RULES)
    for shard in blocks.splits["train"].shards:
        (blocks.directory / shard.name).unlink()
        (blocks.directory / shard.name).mkdir()
    walk = EpochWalk(blocks, "train", plan, seed=4, store=open_store(blocks))
    stream = TrainStream(walk, SHARE, walk.start)
    with pytest.raises(UserError, match=r"train-00000\d\.tar: no answer for 0 s"):
        next(stream)
    assert not walk.damage


def test_blocks_are_asked_for_before_their_step_and_once(
    blocks: Manifest, open_store: Callable[..., BlockStore]
) -> None:
    """Reference: the rows of the next ten steps by the order itself; they are in the cache after one step was taken."""
    store = open_store(blocks)
    walk = EpochWalk(blocks, "train", plan_rows(blocks, "train", RULES), seed=4, store=store)
    stream = TrainStream(walk, SHARE, Cursor(0, 0))
    next(stream)
    stream.close()
    store._ahead.shutdown(wait=True)
    order = epoch_order(walk.plan.rows_B, 4, 0)
    rows = np.concatenate([order.rows_at(SHARE.positions(12 * step).ravel()) for step in range(9)])
    entries = [block for shard in blocks.splits["train"].shards for block in shard.blocks]
    wanted = {f"{entries[b].checksum}-{entries[b].bytes}" for b in walk.plan.blocks_of(rows).tolist()}
    cached = {path.name for path in (store._cache._folder).iterdir()}
    assert wanted <= cached


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("keep", [0, 8])
def test_a_reader_holds_no_more_blocks_open_than_it_was_told(
    blocks: Manifest, open_store: Callable[..., BlockStore], keep: int
) -> None:
    """Reference: the open file descriptors of this process, which every held block costs one of."""
    store = open_store(blocks, keep=keep)
    reader = ShardReader(blocks, "train", store=store)
    before = open_files()
    for number in range(reader.blocks):
        reader.block(number)
    assert open_files() - before == keep
    for number in range(reader.blocks - keep, reader.blocks):
        reader.block(number)
    assert open_files() - before == keep
    small = open_store(
        blocks, cache_bytes=16 * 2 * max(b.bytes for b in blocks.splits["train"].shards[0].blocks), keep=8
    )
    del store
    held = open_files()
    for number in range(reader.blocks):
        ShardReader(blocks, "train", store=small).block(number)
    assert open_files() - held <= 2, "a small cache leaves its room to the blocks of all ranks"


def test_a_plan_of_a_store_is_kept_with_the_small_files(
    blocks: Manifest, open_store: Callable[..., BlockStore], tmp_path: Path
) -> None:
    """The second rank maps the file: the store is asked nothing, so it may be away."""
    store = open_store(blocks)
    path, digest = store_plan(blocks, "train", RULES, tmp_path, store=store)
    store.close()
    assert load_plan(path, digest, blocks, "train", RULES, store).rows > 0


def test_the_window_is_what_the_lanes_read_at_one_time(blocks: Manifest) -> None:
    """60 blocks make 12 lanes: one window has them all. 2,000 blocks make 480 lanes of 4 blocks: all again."""
    sizes = [block.bytes for shard in blocks.splits["train"].shards for block in shard.blocks]
    assert DataSet("x", blocks).window_bytes("train") == (60, sum(sizes))
