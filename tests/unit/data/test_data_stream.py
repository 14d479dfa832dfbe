"""The stream: an epoch is every stored token once, at any world size, through any stop, with damage named."""

import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from train.data.batch import Batch, make_batch
from train.data.epochs import EpochWalk
from train.data.held_out import HeldOutRows, first_documents
from train.data.order import Cursor, Share, epoch_order
from train.data.packing import PackingRules, plan_rows
from train.data.reader import ShardReader
from train.data.stream import Step, TrainStream

LENGTH = 48


def open_stream(manifest: Manifest, cursor: Cursor = Cursor(0, 0), **changes: Any) -> TrainStream:  # noqa: B008
    chosen = {"micro": 2, "size": 12, "rank": 0, "world_size": 1, "repeat": True, "step": 0} | changes
    plan = plan_rows(manifest, "train", PackingRules(LENGTH))
    walk = EpochWalk(manifest, "train", plan, seed=11, repeat=chosen["repeat"])
    share = Share(chosen["rank"], chosen["world_size"], chosen["micro"], chosen["size"])
    schedule = {name: chosen[name] for name in ("sizes", "skips", "flops") if name in chosen}
    return TrainStream(walk, share, cursor, chosen["step"], **schedule)


def take(stream: TrainStream, steps: int) -> list[Step]:
    taken = list(islice(stream, steps))
    stream.close()
    return taken


def contents(batch: Batch) -> list[object]:
    tensors = (batch.ids_T, batch.word_starts_T, batch.cu_seqlens_D1, batch.row_ids_D, batch.row_offsets_D)
    return [*(tensor.tolist() for tensor in tensors), batch.lengths_D.tolist(), batch.epoch, batch.tokens]


def all_contents(steps: list[Step]) -> list[tuple[list[list[object]], Cursor]]:
    return [([contents(batch) for batch in batches], cursor) for batches, cursor in steps]


def pieces_of(batch: Batch) -> list[tuple[tuple[int, ...], tuple[bool, ...]]]:
    """Ordinary ids and their word starts of each document that is no filler."""
    bounds = batch.cu_seqlens_D1.tolist()
    ids, starts = batch.ids_T.tolist(), batch.word_starts_T.tolist()
    return [
        (tuple(ids[begin + 1 : end - 1]), tuple(starts[begin + 1 : end - 1]))
        for begin, end, row in zip(bounds[:-1], bounds[1:], batch.row_ids_D.tolist(), strict=True)
        if row >= 0
    ]


def stored_pieces(documents_of_block: list, length: int) -> Counter:
    """Every piece of every stored document; a piece's first token starts a word even where a word was cut."""
    return Counter(
        (ids[begin : begin + length], (True, *starts[begin + 1 : begin + length]))
        for documents in documents_of_block
        for ids, starts in documents
        for begin in range(0, len(ids), length)
    )


def test_an_epoch_holds_every_stored_token_once_through_changes_of_world_size(
    data_set: Manifest, stored_documents: Callable
) -> None:
    """Reference: the documents as the tarfile module reads them; the run stops and goes on with 1, 3, 2, 6 ranks."""
    read, cursor, worlds = Counter(), Cursor(0, 0), [1, 3, 2, 6]
    while cursor.epoch == 0:
        world_size = worlds[cursor.position // 12 % 4]
        for rank in range(world_size):
            ((batches, after),) = take(open_stream(data_set, cursor, rank=rank, world_size=world_size), 1)
            read.update(piece for batch in batches for piece in pieces_of(batch))
        cursor = after
    assert cursor == Cursor(1, 0)
    assert read == stored_pieces(stored_documents(data_set, "train"), LENGTH - 2)


def test_going_on_from_a_cursor_gives_the_batches_of_the_run_that_never_stopped(data_set: Manifest) -> None:
    """Reference: the uninterrupted stream, over the end of an epoch."""
    whole = all_contents(take(open_stream(data_set), 14))
    assert whole[-1][1].epoch >= 1
    for stopped_after in (1, 5, 12):
        resumed = take(open_stream(data_set, whole[stopped_after - 1][1]), 14 - stopped_after)
        assert all_contents(resumed) == whole[stopped_after:]


def test_the_prefetched_steps_are_those_made_without_a_thread(data_set: Manifest) -> None:
    """Reference: the order and the batch maker called one after the other."""
    stream = open_stream(data_set, rank=1, world_size=2)
    reader, position = ShardReader(data_set, "train"), 0
    for batches, after in islice(stream, 5):
        order = epoch_order(stream.walk.plan.rows_B, seed=11, epoch=0)
        row_ids = order.rows_at(Share(1, 2, 2, 12).positions(position))
        expected = [make_batch(rows, stream.walk.plan, reader, data_set.special_ids, 0) for rows in row_ids]
        assert [contents(batch) for batch in batches] == [contents(batch) for batch in expected]
        position += 12
        assert after == Cursor(0, position)
    stream.close()


def test_the_operations_of_a_batch_are_counted_at_its_step(data_set: Manifest) -> None:
    """Reference: a count that names the tokens and the step, from step 3 on; none is counted where nobody asks."""
    stream = open_stream(data_set, step=3, flops=lambda batch, step: 1000 * batch.tokens + step)
    for number, (batches, _) in enumerate(take(stream, 4), 3):
        assert [batch.flops for batch in batches] == [1000 * batch.tokens + number for batch in batches]
    assert {batch.flops for batches, _ in take(open_stream(data_set), 2) for batch in batches} == {0}


def test_the_last_step_of_an_epoch_counts_only_its_real_rows(data_set: Manifest) -> None:
    """Reference: the totals of the plan."""
    stream = open_stream(data_set, size=50)
    tokens, rows = 0, []
    for batches, after in stream:
        tokens += sum(batch.tokens for batch in batches)
        rows += [row for batch in batches for row in batch.row_ids_D.tolist()]
        if after.epoch:
            break
    stream.close()
    assert -1 in rows
    assert tokens == stream.walk.plan.tokens
    assert set(rows) == set(range(-1, stream.walk.plan.rows))


def test_close_ends_the_thread_whenever_it_comes(data_set: Manifest) -> None:
    """Reference: the thread's own state: before its start, while it waits for room, and twice."""
    stream = open_stream(data_set)
    stream.close()
    assert list(stream) == []
    stream = open_stream(data_set)
    next(stream)
    stream.close()
    stream.close()
    assert not stream._thread.is_alive()
    assert list(stream) == []


def test_at_most_two_steps_are_made_ahead(data_set: Manifest) -> None:
    """Reference: the steps that wait once the thread has had time for many more."""
    stream = open_stream(data_set)
    next(stream)
    deadline = time.monotonic() + 10
    while stream._ready.qsize() < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    stream._thread.join(timeout=0.1)
    assert stream._ready.qsize() == 2
    stream.close()


def test_what_goes_wrong_while_prefetching_is_raised_in_the_consumer_with_the_threads_traceback(
    data_set: Manifest,
) -> None:
    """Reference: an error of the walk itself, at its third step."""
    stream = open_stream(data_set)
    walk = stream.walk
    walk.plan.row_pieces_R1[1:] += 10**6  # pieces that are not there
    with pytest.raises(IndexError) as caught:
        list(islice(stream, 100))
    assert "_produce" in "".join(traceback.format_exception(caught.value))
    assert not stream._thread.is_alive()
    assert list(stream) == []


def test_an_empty_split_is_refused(make_data_set: Callable) -> None:
    """Reference: a data set without documents."""
    with pytest.raises(UserError, match=r"'train' .* holds no documents"):
        open_stream(make_data_set([]))


@pytest.mark.parametrize("max_rows", [1, 7, 10**6])
@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_validation_reads_the_same_rows_once_at_any_world_size(
    data_set: Manifest, world_size: int, max_rows: int
) -> None:
    """Reference: one rank with one row in each batch; and the batches a second time."""

    def read(rank: int, world_size: int, micro: int) -> list[Batch]:
        rows = HeldOutRows(data_set, "validation", PackingRules(LENGTH), micro, rank, world_size, max_rows)
        first = list(rows)
        assert [contents(batch) for batch in first] == [contents(batch) for batch in rows]
        return first

    ranks = [read(rank, world_size, 3) for rank in range(world_size)]
    assert len({len(batches) for batches in ranks}) == 1
    together = [batch for batches in ranks for batch in batches]
    reference = read(0, 1, 1)
    assert [sorted(set(batch.row_ids_D.tolist())) for batch in reference] == [[row] for row in range(len(reference))]
    assert len(reference) == max_rows or max_rows == 10**6
    assert Counter(p for batch in together for p in pieces_of(batch)) == Counter(
        p for batch in reference for p in pieces_of(batch)
    )
    assert {batch.epoch for batch in together} == {-1}


def test_validation_of_all_rows_reads_every_stored_token(data_set: Manifest, stored_documents: Callable) -> None:
    """Reference: the documents as the tarfile module reads them."""
    batches = HeldOutRows(data_set, "validation", PackingRules(LENGTH), 4, 0, 1, 10**6)
    read = Counter(piece for batch in batches for piece in pieces_of(batch))
    assert read == stored_pieces(stored_documents(data_set, "validation"), LENGTH - 2)


@pytest.mark.parametrize(("count", "max_rows"), [(0, 9), (1, 9), (4, 9), (4, 2), (1000, 2)])
@pytest.mark.parametrize("world_size", [1, 3])
def test_documents_to_show_are_the_first_long_ones_on_every_rank(
    data_set: Manifest, count: int, max_rows: int, world_size: int
) -> None:
    """Reference: all documents of the rows in their order, long ones before short ones, longer ones before shorter."""
    alone = HeldOutRows(data_set, "validation", PackingRules(LENGTH), 1, 0, 1, max_rows)
    pieces = [piece for batch in alone for piece in pieces_of(batch)]
    by_worth = sorted(range(len(pieces)), key=lambda i: (-min(32, len(pieces[i][0])), i))
    expected = [pieces[i] for i in sorted(by_worth[:count])]
    masks = {piece: mask for batch in alone for piece, mask in zip(pieces_of(batch), places_of(batch), strict=True)}
    for rank in range(world_size):
        rows = HeldOutRows(data_set, "validation", PackingRules(LENGTH), 2, rank, world_size, max_rows)
        batch = first_documents([rows], count)
        assert (batch is None) == (count == 0)
        if batch is not None:
            assert pieces_of(batch) == expected and batch.epoch == -1
            assert places_of(batch) == [masks[piece] for piece in expected]
            assert batch.tokens == len(batch.ids_T) == sum(len(ids) + 2 for ids, _ in expected)


def test_documents_to_show_come_from_every_data_set(data_set: Manifest, make_data_set: Callable) -> None:
    """Reference: those of each data set alone; of three, the first one gives two."""
    other = make_data_set([[[40]]], [[[40, 41, 42, 43]]], seed=5)
    sets = [HeldOutRows(manifest, "validation", PackingRules(LENGTH), 1, 0, 1, 100) for manifest in (data_set, other)]
    batch = first_documents(sets, 3)
    assert batch is not None
    assert pieces_of(batch) == [
        piece for rows, count in zip(sets, (2, 1), strict=True) for piece in pieces_of(first_documents([rows], count))
    ]


def places_of(batch: Batch) -> list[tuple[int, int]]:
    """What the masks of each document that is no filler depend on: its row and its place there."""
    pairs = zip(batch.row_ids_D.tolist(), batch.row_offsets_D.tolist(), strict=True)
    return [(row, offset) for row, offset in pairs if row >= 0]


def test_a_walk_that_does_not_repeat_ends_after_its_last_row(data_set: Manifest) -> None:
    """Reference: the rows of the plan; nothing comes after them, however often one asks."""
    stream = open_stream(data_set, repeat=False)
    rows = [row for batches, _ in stream for batch in batches for row in set(batch.row_ids_D.tolist())]
    assert sorted(row for row in rows if row >= 0) == list(range(stream.walk.plan.rows))
    assert list(stream) == []
    assert list(open_stream(data_set, Cursor(1, 0), repeat=False)) == []


def rows_of(step: Step) -> list[int]:
    """The rows of a global batch that one rank reads alone, in the order of the stream, without fillers."""
    rows = torch.cat([batch.row_ids_D for batch in step[0]]).tolist()
    return [row for row in dict.fromkeys(rows) if row >= 0]


@pytest.mark.parametrize("resumed_at", [0, 3, 4, 9])
def test_skipped_batches_are_jumped_over_by_the_step_behind_them(data_set: Manifest, resumed_at: int) -> None:
    """Reference: the run that reads all, without its steps 3, 4 and 11, over the end of an epoch. A run that goes on
    with as many completed steps as a jump has, goes over it."""
    whole = all_contents(take(open_stream(data_set), 15))
    expected = [step for number, step in enumerate(whole) if number not in (3, 4, 11)]
    cursor = expected[resumed_at - 1][1] if resumed_at else Cursor(0, 0)
    stream = open_stream(data_set, cursor, step=resumed_at, skips={3: 2, 9: 1})
    assert all_contents(take(stream, 12 - resumed_at)) == expected[resumed_at:]
    assert expected[-1][1].epoch == 1


def test_a_jump_to_the_end_of_the_data_ends_a_walk_that_does_not_repeat(data_set: Manifest) -> None:
    """Reference: the number of rows; one batch less is skipped and the last one is read."""
    steps = -(-open_stream(data_set).walk.plan.rows // 12)
    last = open_stream(data_set, repeat=False, skips={2: steps - 3})
    *_, (_, cursor) = taken = list(last)
    assert len(taken) == 3 and cursor == Cursor(1, 0)
    over = open_stream(data_set, repeat=False, skips={2: steps - 2})
    *_, (_, cursor) = taken = list(over)
    assert len(taken) == 2 and cursor == Cursor(0, 24)
    assert over.is_over(cursor, 2) and not over.is_over(cursor, 3) and not over.is_over(cursor, 1)


@given(
    legs=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=1, max_size=6),
    sizes=st.dictionaries(st.integers(1, 9), st.sampled_from([12, 24, 36, 96]), max_size=3),
)
@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_row_is_read_once_over_changes_of_the_batch_size_and_of_the_ranks(
    data_set: Manifest, legs: list[tuple[int, int]], sizes: dict[int, int]
) -> None:
    """Reference: the order itself, one epoch after another, cut at the sizes, each epoch's last batch filled up. The
    run stops after each leg and goes on with another number of ranks."""
    sizes = dict(sorted(sizes.items()))
    rows = open_stream(data_set).walk.plan.rows
    cursor, step, begin, epoch = Cursor(0, 0), 0, 0, 0
    for world_size, steps in legs:
        streams = [
            open_stream(data_set, cursor, step=step, rank=rank, world_size=world_size, sizes=sizes)
            for rank in range(world_size)
        ]
        for _ in range(steps):
            taken = [next(stream) for stream in streams]
            size = [12, *(size for at, size in sizes.items() if at <= step)][-1]
            order = epoch_order(streams[0].walk.plan.rows_B, 11, epoch)
            expected = order.rows_at(np.arange(begin, min(begin + size, rows)))
            assert sorted(row for one in taken for row in rows_of(one)) == sorted(expected.tolist())
            assert {len(batches) * 2 * world_size for batches, _ in taken} == {size}
            begin, epoch = (begin + size, epoch) if begin + size < rows else (0, epoch + 1)
            (cursor,) = {after for _, after in taken}
            assert cursor == Cursor(epoch, begin)
            step += 1
        for stream in streams:
            stream.close()


def test_a_jump_over_a_change_of_the_batch_size_passes_the_rows_of_the_steps(data_set: Manifest) -> None:
    """Reference: the run that reads all; of its epoch, the rows of steps 3 and 4 alone are missing."""
    sizes = {4: 24}
    whole = take(open_stream(data_set, sizes=sizes, repeat=False), 100)
    jumped = take(open_stream(data_set, sizes=sizes, repeat=False, skips={3: 2}), 100)
    missing = set(rows_of(whole[3])) | set(rows_of(whole[4]))
    assert len(missing) == 12 + 24
    read = [row for step in jumped for row in rows_of(step)]
    assert sorted([*read, *missing]) == list(range(open_stream(data_set).walk.plan.rows))


def test_the_stream_leaves_the_global_generators_alone(data_set: Manifest) -> None:
    """Reference: the states before; bit-exact resume depends on them."""
    before_torch, before_numpy = torch.get_rng_state(), repr(np.random.get_state())
    take(open_stream(data_set), 3)
    assert torch.equal(torch.get_rng_state(), before_torch)
    assert repr(np.random.get_state()) == before_numpy


def test_nothing_is_written_beside_the_shards(data_set: Manifest) -> None:
    """Reference: the folder's listing before; shards may lie on a read-only disk."""

    def listing(folder: Path) -> list[tuple[str, int]]:
        return sorted((path.name, path.stat().st_mtime_ns) for path in folder.rglob("*"))

    before = listing(data_set.directory)
    take(open_stream(data_set), 3)
    assert listing(data_set.directory) == before
