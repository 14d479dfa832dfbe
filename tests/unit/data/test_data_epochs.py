"""Going on from a checkpoint: at once, only on the same rows, over data that only grew when that is asked for."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest, canonical_json
from train.data.epochs import EpochWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, RowPlan, content_digest, plan_rows

ALONE = Share(0, 1, 4, 12)


def open_walk(manifest: Manifest, rules: PackingRules = PackingRules(48), seed: int = 11) -> EpochWalk:  # noqa: B008
    return EpochWalk(manifest, "train", plan_rows(manifest, "train", rules), seed)


def rows_of(walk: EpochWalk, cursor: Cursor) -> tuple[list[int], Cursor]:
    """The rows from `cursor` to the end of its epoch, and the cursor there."""
    rows, epoch = [], cursor.epoch
    while cursor.epoch == epoch:
        row_ids = walk.order(cursor).rows_at(ALONE.positions(cursor.position)).ravel()
        rows += row_ids[row_ids >= 0].tolist()
        cursor = walk.advance(cursor, ALONE)
    return rows, cursor


def test_the_state_is_small_and_says_where_to_go_on(data_set: Manifest) -> None:
    """Reference: the bound of 300 bytes, at numbers larger than any run's; and the cursor it was made from."""
    state = open_walk(data_set, seed=2**63 - 1).state(Cursor(10**6, 10**12))
    assert len(canonical_json(state)) < 300
    walk = open_walk(data_set)
    assert walk.resume(json.loads(canonical_json(walk.state(Cursor(4, 9))))) == Cursor(4, 9)


def test_a_changed_data_set_is_refused_with_both_identities(make_data_set: Callable) -> None:
    """Reference: the identities of two manifests."""
    old, new = make_data_set([[[20, 30]]], seed=1), make_data_set([[[20, 30]]], seed=2)
    state = open_walk(old).state(Cursor(0, 0))
    for grown, reason in ((False, "the data set changed"), (True, "did not only grow")):
        with pytest.raises(UserError, match=reason) as caught:
            open_walk(new).resume(state, grown=grown)
        assert old.identity in str(caught.value)
        assert new.identity in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"), [("order_version", 1), ("seed", 12), ("sequence_length", 64), ("plan", "0"), ("seed", None)]
)
def test_a_state_of_another_order_is_refused_by_the_field_that_differs(
    data_set: Manifest, field: str, value: object
) -> None:
    """Reference: the state with one field changed."""
    walk = open_walk(data_set)
    with pytest.raises(UserError, match=rf"^{field} of the data stream is .* but {value} in the checkpoint"):
        walk.resume(walk.state(Cursor(0, 12)) | {field: value})


def test_another_packing_is_taken_at_the_beginning_of_an_epoch_only(data_set: Manifest) -> None:
    """Reference: in the midst of an epoch rows would be repeated and missed, at its beginning none was read."""
    other = open_walk(data_set, PackingRules(48, piece_length=20))
    walk = open_walk(data_set)
    assert other.resume(walk.state(Cursor(3, 0))) == Cursor(3, 0)
    with pytest.raises(UserError, match=r"^plan of the data stream"):
        other.resume(walk.state(Cursor(3, 12)))


SMALL = [[[20, 30, 70] * 9, [44, 9] * 8], [[60] * 11]]


@pytest.fixture
def grown(make_data_set: Callable) -> tuple[Manifest, Manifest]:
    """A data set, and the same with two more blocks behind it."""
    return make_data_set(SMALL, seed=3), make_data_set([*SMALL, [[33] * 20, [15] * 30]], seed=3)


def test_a_grown_data_set_finishes_the_epoch_over_the_old_rows_and_then_takes_in_all(
    grown: tuple[Manifest, Manifest],
) -> None:
    """Reference: the old data set's epoch, row by row; then every row of the new one."""
    old, new = open_walk(grown[0]), open_walk(grown[1])
    before, after = Cursor(2, 12), Cursor(3, 0)
    cursor = new.resume(old.state(before), grown=True)
    rows, end = rows_of(new, cursor)
    assert (rows, end) == (rows_of(old, before)[0], after)
    again = new.resume(json.loads(canonical_json(new.state(cursor))))
    assert again == cursor, "a second resume, on the grown data set, stays on the old rows too"
    rows, _ = rows_of(new, end)
    assert sorted(rows) == list(range(new.plan.rows))
    assert new.plan.rows > old.plan.rows


def test_growth_is_refused_unless_it_is_asked_for(grown: tuple[Manifest, Manifest]) -> None:
    """Reference: the way out that the message names."""
    with pytest.raises(UserError, match=r"data\.continue_grown=true"):
        open_walk(grown[1]).resume(open_walk(grown[0]).state(Cursor(0, 12)))


def synthetic_plan(blocks: int, rows_per_block: int) -> RowPlan:
    """Rows of one piece each, in blocks of equal size."""
    rows = blocks * rows_per_block
    arrays: tuple[Any, ...] = (
        np.full(blocks, rows_per_block),
        np.arange(rows + 1),
        np.tile(np.arange(rows_per_block, dtype=np.uint32) * 46, blocks),
        np.full(rows, 46, np.uint16),
    )
    return RowPlan(PackingRules(48), *arrays, tokens=48 * rows, unread=(), digest=content_digest(*arrays))


def test_the_first_batch_at_90_percent_of_ten_million_rows_comes_at_once(make_data_set: Callable) -> None:
    """Reference: 50 ms, of which opening nothing and replaying nothing leave most; one block of 1,000 rows is stored
    and stands under 10,000 names."""
    block = [46] * 1000
    manifest = make_data_set([[block]])
    (shard,) = manifest.splits["train"].shards
    entries = replace(shard, blocks=shard.blocks * 10_000)
    manifest = replace(manifest, splits={"train": replace(manifest.splits["train"], shards=(entries,))})
    plan = synthetic_plan(10_000, 1000)
    state = EpochWalk(manifest, "train", plan, seed=1).state(Cursor(5, 9_000_000))
    share = Share(3, 8, 8, 512)
    seconds = []
    for _ in range(5):
        walk = EpochWalk(manifest, "train", plan, seed=1)
        began = time.perf_counter()
        batches = walk.batches(walk.resume(state), share)
        seconds.append(time.perf_counter() - began)
        assert sum(batch.tokens for batch in batches) == 48 * 64
    assert min(seconds) < 0.05
