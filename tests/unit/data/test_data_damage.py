"""Damage: named once, its rows left out and counted, everything else as it was; too much of it ends the run."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data_pipeline.manifest import Manifest, load_manifest
from train.data.batch import Batch
from train.data.damage import damaged_blocks, is_too_much
from train.data.epochs import EpochWalk
from train.data.members import locate
from train.data.mixture import MixtureWalk, Stage
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, RowPlan, plan_rows
from train.distributed import Ranks

RULES = PackingRules(48)
ALONE = Share(0, 1, 4, 12)


def flip(manifest: Manifest, block: int, where: str) -> None:
    """One bit of a member of a block of the train split."""
    shard, number = (0, block) if block < 3 else (1, block - 3)
    entry = manifest.splits["train"].shards[shard].blocks[number]
    start = getattr(locate(entry.tokens, entry.documents, 2), where)
    path = manifest.directory / manifest.splits["train"].shards[shard].name
    content = bytearray(path.read_bytes())
    content[entry.offset + start + 5] ^= 1
    path.write_bytes(content)


def rows_of(batch: Batch) -> dict[int, list[object]]:
    """What each row that is no filler holds."""
    bounds, ids = batch.cu_seqlens_D1.tolist(), batch.ids_T.tolist()
    rows: dict[int, list[object]] = {}
    for row, begin, end in zip(batch.row_ids_D.tolist(), bounds[:-1], bounds[1:], strict=True):
        if row >= 0:
            rows.setdefault(row, []).append(ids[begin:end])
    return rows


def epoch_of(manifest: Manifest, plan: RowPlan) -> tuple[list[dict[int, list[object]]], int, int]:
    """The rows of each global batch of an epoch; rows counted as seen, and as damaged."""
    return read_epoch(EpochWalk(manifest, "train", plan, seed=11))


def read_epoch(walk: EpochWalk) -> tuple[list[dict[int, list[object]]], int, int]:
    """`epoch_of`, of the first epoch of a walk."""
    cursor, read, seen, damaged = Cursor(0, 0), [], 0, 0
    while cursor.epoch == 0:
        batches = walk.batches(cursor, ALONE)
        read.append({row: pieces for batch in batches for row, pieces in rows_of(batch).items()})
        seen += sum(batch.rows for batch in batches)
        damaged += sum(batch.damaged_rows for batch in batches)
        cursor = walk.advance(cursor, ALONE)
    return read, seen, damaged


def without(read: list[dict[int, list[object]]], rows: range) -> list[dict[int, list[object]]]:
    return [{row: pieces for row, pieces in batch.items() if row not in rows} for batch in read]


def rows_of_block(plan: RowPlan, block: int) -> range:
    end = int(plan.last_row_B[block])
    return range(end - int(plan.rows_B[block]), end)


@pytest.mark.parametrize("where", ["ids", "offsets", "words"])
def test_a_flipped_bit_costs_the_rows_of_its_block_and_moves_nothing_else(
    data_set: Manifest, messages: Callable, where: str
) -> None:
    """Reference: the epoch before the damage, batch by batch, without the rows of that block."""
    plan = plan_rows(data_set, "train", RULES)
    before, seen_before, _ = epoch_of(data_set, plan)
    flip(data_set, 1, where)
    after, seen, damaged = epoch_of(data_set, plan)
    assert after == without(before, rows_of_block(plan, 1))
    assert (seen, damaged) == (seen_before, len(rows_of_block(plan, 1)))
    (named,) = messages()
    assert "train-000000.tar, block 000000001: the checksum is" in named


def test_a_missing_or_short_shard_costs_the_rows_of_its_blocks(data_set: Manifest, messages: Callable) -> None:
    """Reference: the epoch before the damage; each block is named once."""
    plan = plan_rows(data_set, "train", RULES)
    before, _, _ = epoch_of(data_set, plan)
    path = data_set.directory / "train-000001.tar"
    content = path.read_bytes()
    lost = range(rows_of_block(plan, 3).start, plan.rows)
    path.unlink()
    after, _, damaged = epoch_of(data_set, plan)
    assert (after, damaged) == (without(before, lost), len(lost))
    assert Counter(reason for block in (3, 4) for reason in messages() if f"block {block:09d}: No such file" in reason)
    assert len(messages()) == 2
    path.write_bytes(content[: data_set.splits["train"].shards[1].blocks[1].offset + 700])
    after, _, damaged = epoch_of(data_set, plan)
    assert (after, damaged) == (without(before, rows_of_block(plan, 4)), len(rows_of_block(plan, 4)))
    assert "the shard ends at byte" in messages()[-1]


def test_a_shard_that_comes_back_is_read_again(data_set: Manifest) -> None:
    """Reference: the epoch before."""
    plan = plan_rows(data_set, "train", RULES)
    walk = EpochWalk(data_set, "train", plan, seed=11)
    path, aside = data_set.directory / "train-000000.tar", data_set.directory / "aside"
    path.rename(aside)
    assert sum(batch.damaged_rows for batch in walk.batches(Cursor(0, 0), ALONE)) > 0
    aside.rename(path)
    assert sum(batch.damaged_rows for batch in walk.batches(Cursor(0, 0), ALONE)) == 0


def test_document_bounds_that_cannot_be_read_move_no_other_block(data_set: Manifest, messages: Callable) -> None:
    """Reference: the plan without damage, whose rows of the other blocks hold the same pieces."""
    whole = plan_rows(data_set, "train", RULES)
    content = bytearray((data_set.directory / "train-000000.tar").read_bytes())
    entry = data_set.splits["train"].shards[0].blocks[1]
    start = locate(entry.tokens, entry.documents, 2).offsets
    content[entry.offset + start : entry.offset + start + 8] = bytes(8)
    (data_set.directory / "train-000000.tar").write_bytes(content)
    plan = plan_rows(data_set, "train", RULES)
    assert [block for block, _ in plan.unread] == [1]
    assert plan.rows_B[1] == -(-entry.tokens // 46)
    for block in (0, 2, 3, 4):
        for old, new in zip(rows_of_block(whole, block), rows_of_block(plan, block), strict=True):
            assert pieces_of_row(whole, old) == pieces_of_row(plan, new)
    read, _, damaged = epoch_of(data_set, plan)
    assert damaged == plan.rows_B[1]
    assert sorted(row for batch in read for row in batch) == [
        row for block in (0, 2, 3, 4) for row in rows_of_block(plan, block)
    ]
    (named,) = messages()
    assert "block 000000001: 000000001.offsets.npy: document bounds do not rise" in named


def test_rows_lost_when_planned_and_rows_lost_when_read_are_counted_together(data_set: Manifest) -> None:
    """Reference: the rows of both blocks."""
    entry = data_set.splits["train"].shards[0].blocks[1]
    content = bytearray((data_set.directory / "train-000000.tar").read_bytes())
    start = entry.offset + locate(entry.tokens, entry.documents, 2).offsets
    content[start : start + 8] = bytes(8)
    (data_set.directory / "train-000000.tar").write_bytes(content)
    plan = plan_rows(data_set, "train", RULES)
    flip(data_set, 0, "ids")
    read, _, damaged = epoch_of(data_set, plan)
    assert damaged == plan.rows_B[0] + plan.rows_B[1]
    assert sorted(row for batch in read for row in batch) == list(range(damaged, plan.rows))


def pieces_of_row(plan: RowPlan, row: int) -> list[tuple[int, int]]:
    pieces = slice(plan.row_pieces_R1[row], plan.row_pieces_R1[row + 1])
    return list(zip(plan.piece_start_P[pieces].tolist(), plan.piece_length_P[pieces].tolist(), strict=True))


def test_a_plan_of_other_document_bounds_is_noticed_when_the_block_is_read(
    make_data_set: Callable, messages: Callable
) -> None:
    """Reference: the bounds as stored; the plan was made while one of them was damaged and still in order."""
    manifest = make_data_set([[[20] * 50]])
    plan = plan_rows(manifest, "train", RULES)
    plan.piece_start_P[7] += 3
    _, seen, damaged = epoch_of(manifest, plan)
    assert damaged == seen > 0
    assert "the packing plan was made from other document bounds" in messages()[0]


@pytest.mark.parametrize("world_size", [1, 3])
def test_damage_is_counted_once_over_all_ranks(data_set: Manifest, world_size: int) -> None:
    """Reference: the rows of the block."""
    plan = plan_rows(data_set, "train", RULES)
    flip(data_set, 3, "ids")
    damaged = 0
    for rank in range(world_size):
        walk, cursor = EpochWalk(data_set, "train", plan, seed=2), Cursor(0, 0)
        share = Share(rank, world_size, 2, 6)
        while cursor.epoch == 0:
            damaged += sum(batch.damaged_rows for batch in walk.batches(cursor, share))
            cursor = walk.advance(cursor, share)
    assert damaged == plan.rows_B[3]


def test_damaged_blocks_are_counted_once_over_epochs_and_stages(data_set: Manifest) -> None:
    """Reference: the blocks that were flipped; two stages of a mixture read them under two plans."""
    rank = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), host_group=None)
    plans = [plan_rows(data_set, "train", PackingRules(length)) for length in (48, 96)]
    for block in (1, 3):
        flip(data_set, block, "ids")
    walks = [EpochWalk(data_set, "train", plan, seed=2) for plan in plans]
    mixture = MixtureWalk([Stage(10 * n, (walk,), (1.0,)) for n, walk in enumerate(walks)], ["one"], seed=2)
    assert damaged_blocks(rank, walks[0]) == damaged_blocks(rank, mixture) == 0
    for walk in (*walks, walks[0]):
        read_epoch(walk)
    assert [damaged_blocks(rank, walk) for walk in (*walks, mixture)] == [2, 2, 2]


@pytest.mark.parametrize(
    ("damaged", "seen", "share", "ends"),
    [(10, 20, 0.001, False), (11, 20, 0.001, True), (100, 10**5, 0.001, False), (101, 10**5, 0.001, True)],
)
def test_damage_is_too_much_above_the_share_of_rows_seen_or_of_ten_thousand(
    damaged: int, seen: int, share: float, ends: bool
) -> None:
    """Reference: the rule as the configuration words it."""
    assert is_too_much(damaged, seen, share) is ends
    assert is_too_much(1, seen, 0.0)
    assert not is_too_much(seen, seen, 1.0)


def test_a_shard_cut_off_while_it_is_read_costs_rows_and_does_not_end_the_process(
    make_data_set: Callable,
) -> None:
    """Reference: the rows of the blocks that are gone, then all rows again; in a process of its own, as a page behind
    the end of a mapped file would end it by a signal."""
    data_set = make_data_set([[[40] * 300] * 3, [[40] * 300] * 2])  # blocks of several pages
    done = subprocess.run(
        [sys.executable, __file__, str(data_set.directory)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"signal {-done.returncode}: {done.stderr}"
    before, cut, mended = json.loads(done.stdout)
    plan = plan_rows(data_set, "train", RULES)
    assert (before, mended) == (0, 0)
    assert cut == len(rows_of_block(plan, 4))


def cut_while_reading(folder: Path) -> list[int]:
    """Damaged rows of an epoch of one walk before its last block is cut off, after, and when it is back."""
    manifest = load_manifest(folder)
    path = folder / manifest.splits["train"].shards[1].name
    content, end = path.read_bytes(), manifest.splits["train"].shards[1].blocks[1].offset
    walk, found = EpochWalk(manifest, "train", plan_rows(manifest, "train", RULES), seed=11), []
    for size in (len(content), end, len(content)):
        with path.open("r+b") as file:
            file.write(content)
            file.truncate(size)
        time.sleep(0.1)  # more than the reader lets pass without a look
        found.append(read_epoch(walk)[2])
    return found


def test_a_shard_put_in_the_place_of_a_damaged_one_is_read_and_not_the_mapped_one(data_set: Manifest) -> None:
    """Reference: the epoch before the damage; the damaged file was mapped for its other blocks."""
    plan = plan_rows(data_set, "train", RULES)
    before, _, _ = epoch_of(data_set, plan)
    path = data_set.directory / "train-000000.tar"
    content = path.read_bytes()
    flip(data_set, 1, "ids")
    walk = EpochWalk(data_set, "train", plan, seed=11)
    assert read_epoch(walk)[2] == len(rows_of_block(plan, 1))
    (data_set.directory / "copy").write_bytes(content)
    (data_set.directory / "copy").rename(path)
    after, _, damaged = read_epoch(walk)
    assert (after, damaged) == (before, 0)


if __name__ == "__main__":
    print(json.dumps(cut_while_reading(Path(sys.argv[1]))))  # noqa: T201 - what the test above reads
