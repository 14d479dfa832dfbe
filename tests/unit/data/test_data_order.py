"""The order of rows: every row exactly once an epoch, whatever happens to the number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.order import Cursor, advance, epoch_key, global_batch, permute, rank_rows

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


def test_order_version_1_never_changes() -> None:
    """Reference: the values of the first release; another order needs another ORDER_VERSION, or resume goes wrong."""
    assert permute(np.arange(12), 12, epoch_key(0, 0)).tolist() == [5, 3, 7, 8, 1, 0, 4, 6, 11, 9, 10, 2]
    assert permute(np.array([0, 10**12]), 10**13, epoch_key(-5, 3)).tolist() == [7407635464833, 3843596656225]


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    """Reference: a set, where equal orders would fall together."""
    orders = {tuple(permute(np.arange(50), 50, epoch_key(seed, epoch))) for seed in range(5) for epoch in range(20)}
    assert len(orders) == 100


@pytest.mark.parametrize("index", [-1, 5])
def test_permute_refuses_an_index_outside(index: int) -> None:
    """Reference: the interval itself."""
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        permute(np.array([index]), 5, 0)


@st.composite
def runs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, int]]]:
    """Rows of an epoch, and the stages of a run: (world size, micro-batch, accumulation steps, optimizer steps)."""
    sizes = st.tuples(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6))
    return draw(st.integers(1, 400)), draw(st.lists(sizes, min_size=1, max_size=8))


@given(run=runs(), seed=st.integers(-(2**63), 2**63))
@settings(deadline=None, max_examples=200)
def test_every_row_exactly_once_an_epoch_under_any_change_of_ranks(
    run: tuple[int, list[tuple[int, int, int, int]]], seed: int
) -> None:
    """Reference: range(rows), against what all ranks read through stops and changes of world and batch sizes."""
    rows, stages = run
    cursor = Cursor(0, 0)
    read: dict[int, list[int]] = {}
    stage = 0
    while cursor.epoch < 2:
        world_size, micro, accumulation, steps = stages[stage % len(stages)]
        stage += 1
        size = world_size * micro * accumulation
        for _ in range(steps):
            if cursor.epoch == 2:
                break
            batch = global_batch(cursor, rows, size, seed)
            for rank in range(world_size):
                part = rank_rows(batch, rank, world_size, micro)
                assert part.shape == (accumulation, micro)
                read.setdefault(cursor.epoch, []).extend(row for row in part.ravel().tolist() if row >= 0)
            cursor = advance(cursor, rows, size)
    assert all(sorted(rows_read) == list(range(rows)) for rows_read in read.values())


@given(rows=st.integers(1, 300), start=st.integers(0, 299), seed=st.integers(0, 100))
@settings(deadline=None)
def test_a_global_batch_holds_the_same_rows_at_every_world_size(rows: int, start: int, seed: int) -> None:
    """Reference: the global batch of one rank."""
    batch = global_batch(Cursor(1, min(start, rows - 1)), rows, 24, seed)
    for world_size, micro in [(1, 24), (2, 3), (3, 4), (8, 3), (24, 1)]:
        parts = [rank_rows(batch, rank, world_size, micro) for rank in range(world_size)]
        assert sorted(np.concatenate(parts, axis=None).tolist()) == sorted(batch.tolist())


def test_only_the_last_batch_of_an_epoch_is_filled_up() -> None:
    """Reference: 10 rows in batches of 4 are 4 + 4 + 2."""
    cursor, fillers = Cursor(0, 0), []
    for _ in range(4):
        fillers.append(int((global_batch(cursor, 10, 4, 0) == -1).sum()))
        cursor = advance(cursor, 10, 4)
    assert fillers == [0, 0, 2, 0]
    assert cursor == Cursor(1, 4)


def test_a_batch_that_ends_with_the_epoch_leads_into_the_next() -> None:
    """Reference: arithmetic."""
    assert advance(Cursor(3, 6), 10, 4) == Cursor(4, 0)


def test_sizes_that_do_not_divide_are_refused() -> None:
    """Reference: 10 rows are no multiple of 2 ranks x 3 rows; a cursor past the epoch has no batch."""
    with pytest.raises(ValueError, match="2 ranks x 3 rows"):
        rank_rows(np.arange(10), 0, 2, 3)
    with pytest.raises(ValueError, match="position 10"):
        global_batch(Cursor(0, 10), 10, 4, 0)
