"""The order of rows: every row exactly once an epoch, whatever happens to the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.order import LANES, Cursor, EpochOrder, Share, advance, epoch_key, epoch_order, lanes_for, permute

KEYS = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), key=KEYS)
@settings(deadline=None)
def test_permute_is_a_permutation(size: int, key: int) -> None:
    """Reference: range(size)."""
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(2, 2**60), key=KEYS, data=st.data())
@settings(deadline=None)
def test_permute_of_some_indices_equals_permuting_one_by_one(size: int, key: int, data: st.DataObject) -> None:
    """Reference: the same function on single indices; at any size no two indices meet."""
    indices = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True))
    together = permute(np.array(indices), size, key).tolist()
    assert together == [int(permute(np.array([index]), size, key)[0]) for index in indices]
    assert len(set(together)) == len(indices)
    assert all(0 <= place < size for place in together)


@pytest.mark.parametrize("size", [3, 10, 20])
def test_permute_sends_an_index_everywhere_equally_often(size: int) -> None:
    """Reference: the uniform distribution; chi-square per degree of freedom is 1 within 5 sigma."""
    trials = 200 * size
    places = np.array([permute(np.arange(size), size, epoch_key(1, epoch)) for epoch in range(trials)])
    counts = np.stack([np.bincount(places[:, index], minlength=size) for index in range(size)])
    chi_square = ((counts - trials / size) ** 2 / (trials / size)).sum() / (size - 1) ** 2
    assert abs(chi_square - 1) < 5 * 2**0.5 / (size - 1)


def test_neighbours_in_the_order_are_not_neighbours_in_the_data() -> None:
    """Reference: a random permutation, where the distance of neighbours averages a third of the size."""
    size = 100_000
    places = permute(np.arange(size), size, epoch_key(0, 0))
    assert abs(np.abs(np.diff(places)).mean() / size - 1 / 3) < 0.01
    assert abs(np.corrcoef(np.arange(size), places)[0, 1]) < 0.02


def test_order_version_2_never_changes() -> None:
    """Reference: the values of the first release; another order needs another ORDER_VERSION, or resume goes wrong."""
    order = epoch_order(np.arange(1, 30), seed=3, epoch=5)
    assert order.rows_at(np.arange(0, 435, 40)).tolist() == [7, 146, 81, 326, 80, 224, 350, 141, 144, 88, 164]
    assert permute(np.arange(12), 12, epoch_key(0, 0)).tolist() == [5, 3, 7, 8, 1, 0, 4, 6, 11, 9, 10, 2]
    assert permute(np.array([0, 10**12]), 10**13, epoch_key(-5, 3)).tolist() == [7407635464833, 3843596656225]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Reference: a set, where equal orders would fall together."""
    orders = {tuple(permute(np.arange(50), 50, epoch_key(seed, epoch))) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), seed=st.integers(0, 99))
@settings(deadline=None)
def test_sizes_and_keys_may_differ_from_index_to_index(sizes: list[int], seed: int) -> None:
    """Reference: one call for each size."""
    keys = np.array([epoch_key(seed, number) for number in range(len(sizes))], dtype=np.uint64)
    index_N = np.concatenate([np.arange(size) for size in sizes])
    together = permute(index_N, np.repeat(sizes, sizes), np.repeat(keys, sizes))
    apart = [permute(np.arange(size), size, int(key)) for size, key in zip(sizes, keys, strict=True)]
    assert together.tolist() == np.concatenate(apart).tolist()


@pytest.mark.parametrize("index", [-1, 5])
def test_permute_refuses_an_index_outside(index: int) -> None:
    """Reference: the interval itself."""
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([index]), 5, 0)


def slow_lanes(order: EpochOrder) -> list[range]:
    """The lanes by their definition, cut off one after another."""
    lanes, start = [], 0
    for lane in range(order.lanes):
        rows = order.rows // order.lanes + (lane < order.rows % order.lanes)
        lanes.append(range(start, start + rows))
        start += rows
    return lanes


def slow_sequence(order: EpochOrder, rows_B: list[int]) -> list[int]:
    """The rows of all blocks, one block after another in the order of the epoch."""
    first_rows = [sum(rows_B[:block]) for block in range(len(rows_B))]
    sequence: list[int] = []
    for first, size in zip(order.first_row_B.tolist(), np.diff(order.bounds_B1).tolist(), strict=True):
        assert any(first == row and size == rows for row, rows in zip(first_rows, rows_B, strict=True))
        sequence.extend(range(first, first + size))
    return sequence


BLOCKS = st.lists(st.integers(0, 12), min_size=1, max_size=60).filter(any)


@given(rows_B=BLOCKS, seed=st.integers(0, 2**63), epoch=st.integers(0, 9))
@settings(deadline=None)
def test_an_epoch_goes_through_lanes_of_whole_blocks_window_by_window(rows_B: list[int], seed: int, epoch: int) -> None:
    """Reference: the definition in loops: position p is the next row of lane p mod C; a window is done before the next
    begins."""
    order = epoch_order(np.array(rows_B), seed, epoch)
    place_of = {row: place for place, row in enumerate(slow_sequence(order, rows_B))}
    places = [place_of[row] for row in order.rows_at(np.arange(order.rows)).tolist()]
    assert sorted(places) == list(range(order.rows))
    for lane, expected in enumerate(slow_lanes(order)):
        found = places[lane :: order.lanes]
        assert order.lane_bounds()[lane] == expected.start
        for begin in range(0, len(expected), order.window_rows):
            window = slice(begin, begin + order.window_rows)
            assert sorted(found[window]) == list(expected[window])


@pytest.mark.parametrize(("blocks", "lanes"), [(1, 1), (7, 1), (8, 2), (20, 4), (47, 4), (300, 60), (50_000, 960)])
def test_lanes_follow_from_the_number_of_blocks_alone(blocks: int, lanes: int) -> None:
    """Reference: the largest number on the list that leaves a lane 4 blocks."""
    assert lanes_for(blocks) == lanes
    assert lanes == max(count for count in LANES if count == 1 or blocks // count >= 4)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int, int]]]:
    """Rows of each block, and the stages of a run: (world size, micro-batch, accumulation steps, optimizer steps)."""
    sizes = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6))
    return draw(BLOCKS), draw(st.lists(sizes, min_size=1, max_size=8))


@given(run=runs(), seed=st.integers(-(2**63), 2**63))
@settings(deadline=None, max_examples=300)
def test_every_row_exactly_once_an_epoch_under_any_change_of_ranks(
    run: tuple[list[int], list[tuple[int, int, int, int]]], seed: int
) -> None:
    """Reference: range(rows), against what all ranks read through stops and changes of world and batch sizes."""
    rows_B, stages = np.array(run[0]), run[1]
    rows = int(rows_B.sum())
    cursor, stage = Cursor(0, 0), 0
    read: dict[int, list[int]] = {}
    while cursor.epoch < 2:
        world_size, micro, accumulation, steps = stages[stage % len(stages)]
        stage += 1
        size = world_size * micro * accumulation
        for _ in range(steps):
            if cursor.epoch == 2:
                break
            order = epoch_order(rows_B, seed, cursor.epoch)  # anew, as after a resume
            for rank in range(world_size):
                part = order.rows_at(Share(rank, world_size, micro, size).positions(cursor.position))
                assert part.shape == (accumulation, micro)
                assert (part >= 0).all() or cursor.position + size > rows, "fillers stand in the last batch only"
                read.setdefault(cursor.epoch, []).extend(row for row in part.ravel().tolist() if row >= 0)
            cursor = advance(cursor, rows, size)
    assert all(sorted(rows_read) == list(range(rows)) for rows_read in read.values())


@given(rows_B=BLOCKS, start=st.integers(0, 299), seed=st.integers(0, 100))
@settings(deadline=None)
def test_a_global_batch_holds_the_same_rows_at_every_world_size(rows_B: list[int], start: int, seed: int) -> None:
    """Reference: the global batch of one rank; row j of it is computed by rank j mod world size."""
    order = epoch_order(np.array(rows_B), seed, 1)
    start = min(start, order.rows - 1)
    batch = order.rows_at(Share(0, 1, 24, 24).positions(start)).ravel()
    for world_size, micro in [(1, 24), (2, 3), (3, 4), (8, 3), (24, 1)]:
        for rank in range(world_size):
            part = order.rows_at(Share(rank, world_size, micro, 24).positions(start))
            assert part.ravel().tolist() == batch[rank::world_size].tolist()


@pytest.mark.parametrize("world_size", [2, 4, 12])
def test_a_block_is_read_by_one_rank_unless_lanes_meet_in_it(world_size: int) -> None:
    """Reference: the lane bounds that fall inside a block, counted one by one; everything else has one reader."""
    rows_B = np.random.default_rng(4).integers(20, 60, size=60)
    first_row_B = np.cumsum(rows_B) - rows_B
    order = epoch_order(rows_B, seed=0, epoch=3)
    assert order.lanes == 12
    readers = [set() for _ in rows_B]
    size = world_size * 6
    for start in range(0, order.rows, size):
        for rank in range(world_size):
            row_N = order.rows_at(Share(rank, world_size, 3, size).positions(start)).ravel()
            for block in np.searchsorted(first_row_B, row_N[row_N >= 0], side="right") - 1:
                readers[block].add(rank)
    begins = set(order.bounds_B1.tolist())
    meeting = sum(bound not in begins for bound in order.lane_bounds().tolist())
    assert sum(len(ranks) > 1 for ranks in readers) == meeting
    assert all(len(ranks) <= 2 for ranks in readers)


@pytest.mark.parametrize("blocks", [20, 300, 5_000, 50_000])
def test_batches_draw_from_almost_as_many_blocks_as_a_full_permutation_would(blocks: int) -> None:
    """Reference: distinct blocks in 512 rows of a random permutation of all rows; at least 90 % of that."""
    rng = np.random.default_rng(0)
    rows_B = rng.integers(50, 150, size=blocks)
    bounds = np.cumsum(rows_B)
    order = epoch_order(rows_B, seed=1, epoch=0)
    starts = np.linspace(0, order.rows - 512, 12).astype(int)
    found = [
        np.unique(np.searchsorted(bounds, order.rows_at(np.arange(s, s + 512)), side="right")).size for s in starts
    ]
    full = [np.unique(np.searchsorted(bounds, rng.integers(0, order.rows, 512), side="right")).size for _ in starts]
    assert np.mean(found) >= 0.9 * np.mean(full)


def test_only_the_last_batch_of_an_epoch_is_filled_up() -> None:
    """Reference: 10 rows in batches of 4 are 4 + 4 + 2."""
    order, cursor, fillers = epoch_order(np.array([3, 7]), 0, 0), Cursor(0, 0), []
    for _ in range(3):
        fillers.append(int((order.rows_at(Share(0, 1, 4, 4).positions(cursor.position)) == -1).sum()))
        cursor = advance(cursor, 10, 4)
    assert fillers == [0, 0, 2]
    assert cursor == Cursor(1, 0)


def test_sizes_that_do_not_divide_and_positions_before_the_epoch_are_refused() -> None:
    """Reference: 10 rows are no multiple of 2 ranks x 3 rows; position -1 is none."""
    with pytest.raises(ValueError, match="2 ranks x 3 rows"):
        Share(0, 2, 3, 10)
    with pytest.raises(ValueError, match="position -1"):
        epoch_order(np.array([5]), 0, 0).rows_at(np.array([-1]))
