"""The packing plan: nothing lost, nothing too long, as tight as best fit decreasing, the same every time."""

import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest
from train.data.packing import PackingRules, RowPlan, cut_documents, pack_pieces, plan_rows


def slow_row_loads(costs: list[int], capacity: int) -> list[int]:
    """Best fit decreasing as the textbook has it: each piece goes to the fullest row with room, else to a new one."""
    loads: list[int] = []
    for cost in sorted(costs, reverse=True):
        fitting = [row for row, load in enumerate(loads) if load + cost <= capacity]
        if fitting:
            loads[max(fitting, key=lambda row: loads[row])] += cost
        else:
            loads.append(cost)
    return loads


def row_sets(plan: RowPlan) -> list[tuple[int, list[tuple[int, int]]]]:
    """(block, [(start, length) of each piece]) of each row."""
    bounds = plan.row_pieces_R1.tolist()
    pieces = list(zip(plan.piece_start_P.tolist(), plan.piece_length_P.tolist(), strict=True))
    blocks = np.repeat(np.arange(len(plan.rows_B)), plan.rows_B).tolist()
    assert plan.blocks_of(np.arange(plan.rows)).tolist() == blocks
    return [(block, pieces[bounds[row] : bounds[row + 1]]) for row, block in enumerate(blocks)]


@given(costs=st.lists(st.integers(1, 40), max_size=120), capacity=st.integers(40, 60))
@settings(deadline=None, max_examples=200)
def test_packing_is_best_fit_decreasing(costs: list[int], capacity: int) -> None:
    """Reference: the textbook algorithm, piece by piece; loads are compared, as equal rows may change places."""
    row_P = pack_pieces(np.array(costs, dtype=np.int64), capacity)
    loads = np.bincount(row_P, weights=costs) if costs else np.empty(0)
    assert sorted(loads.tolist()) == sorted(slow_row_loads(costs, capacity))
    assert list(dict.fromkeys(row_P.tolist())) == list(range(len(loads))), "rows are numbered by their first piece"


@given(lengths=st.lists(st.integers(0, 50), max_size=30), piece_length=st.integers(1, 20), data=st.data())
@settings(deadline=None)
def test_documents_are_cut_into_full_pieces_and_a_rest(
    lengths: list[int], piece_length: int, data: st.DataObject
) -> None:
    """Reference: slicing each document in a loop, each time going back by the overlap, until its end is reached."""
    overlap = data.draw(st.integers(0, piece_length - 1))
    expected, begin = [], 0
    for length in lengths:
        start = 0
        while start < length and (start == 0 or start + overlap < length):
            expected.append((begin + start, min(piece_length, length - start)))
            start += piece_length - overlap
        begin += length
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    start_P, length_P = cut_documents(offsets, piece_length, overlap)
    assert list(zip(start_P.tolist(), length_P.tolist(), strict=True)) == expected


@pytest.mark.parametrize(("piece_length", "overlap"), [(10, 0), (10, 3), (None, 20)])
def test_pieces_are_as_long_as_the_rules_say_and_cover_every_document(
    data_set: Manifest, piece_length: int | None, overlap: int
) -> None:
    """Reference: the tokens of the blocks, of which each is in one piece, or in two where pieces overlap."""
    plan = plan_rows(data_set, "train", PackingRules(64, piece_length, overlap))
    longest = piece_length or 62
    times = Counter()
    for block, pieces in row_sets(plan):
        assert sum(length + 2 for _, length in pieces) <= 64
        for start, length in pieces:
            assert length <= longest
            times.update((block, token) for token in range(start, start + length))
    entries = [entry for shard in data_set.splits["train"].shards for entry in shard.blocks]
    assert set(times) == {(block, token) for block, entry in enumerate(entries) for token in range(entry.tokens)}
    assert set(times.values()) == ({1, 2} if overlap else {1})


@pytest.mark.parametrize("sequence_length", [3, 8, 64, 512])
def test_rows_hold_every_stored_token_once_and_never_too_many(
    data_set: Manifest, stored_documents: Callable, sequence_length: int
) -> None:
    """Reference: the documents as the tarfile module reads them, cut in a loop."""
    expected = Counter()
    for number, documents in enumerate(stored_documents(data_set, "train")):
        start = 0
        for ids, _ in documents:
            for begin in range(0, len(ids), sequence_length - 2):
                expected[number, start + begin, min(sequence_length - 2, len(ids) - begin)] += 1
            start += len(ids)
    plan = plan_rows(data_set, "train", PackingRules(sequence_length))
    rows = row_sets(plan)
    assert Counter((block, start, length) for block, pieces in rows for start, length in pieces) == expected
    assert all(0 < sum(length + 2 for _, length in pieces) <= sequence_length for _, pieces in rows)
    assert plan.tokens == sum(length + 2 for _, _, length in expected)
    assert plan.padding_share == pytest.approx(1 - plan.tokens / (len(rows) * sequence_length))


def test_rows_and_their_pieces_stand_in_the_order_of_the_text(data_set: Manifest) -> None:
    """Reference: sorting by block and start: the first rows are not the long documents only."""
    rows = row_sets(plan_rows(data_set, "train", PackingRules(64)))
    first_pieces = [(block, pieces[0][0]) for block, pieces in rows]
    assert first_pieces == sorted(first_pieces)
    assert all(pieces == sorted(pieces) for _, pieces in rows)


@pytest.mark.parametrize("max_rows", [0, 1, 40, 10**6])
def test_a_plan_of_some_rows_is_the_beginning_of_the_whole_plan(data_set: Manifest, max_rows: int) -> None:
    """Reference: the plan of the whole split."""
    whole = row_sets(plan_rows(data_set, "train", PackingRules(32)))
    part = row_sets(plan_rows(data_set, "train", PackingRules(32), max_rows))
    assert part == whole[: len(part)]
    assert len(part) >= min(max_rows, len(whole))
    without_the_last_block = [block for block, _ in part if block != part[-1][0]]
    assert not part or len(without_the_last_block) < max_rows, "no block is read that is not needed"


def test_packing_of_order_version_2_never_changes(make_data_set: Callable) -> None:
    """Reference: the plan of the first release; another plan needs another ORDER_VERSION, or resume goes wrong."""
    lengths = [(7 * number * number) % 97 + 1 for number in range(300)]
    plan = plan_rows(make_data_set([[lengths]]), "train", PackingRules(64))
    digest = hashlib.sha256(repr(row_sets(plan)).encode()).hexdigest()
    assert (plan.rows, digest) == (244, "5ab0c5b71d59c12c29fb0ae7d347f92e89d903a4c95b4291bc960ced4ab1e6ac")


def test_padding_of_documents_like_real_ones_is_under_half_a_percent(make_data_set: Callable) -> None:
    """Reference: the bound itself, on log-normal lengths with a median of 300 tokens."""
    lengths = np.random.default_rng(0).lognormal(5.7, 1.1, size=800).astype(int) + 1
    assert plan_rows(make_data_set([[lengths.tolist()]]), "train", PackingRules(512)).padding_share < 0.005


def test_an_empty_split_has_an_empty_plan(make_data_set: Callable) -> None:
    """Reference: no documents, no rows."""
    plan = plan_rows(make_data_set([]), "train", PackingRules(512))
    assert (plan.rows, plan.tokens, plan.padding_share) == (0, 0, 0.0)


def test_a_sequence_length_without_room_for_a_token_is_the_users_mistake(data_set: Manifest) -> None:
    """Reference: [CLS] and [SEP] alone take 2."""
    with pytest.raises(UserError, match="sequence_length 2 "):
        plan_rows(data_set, "train", PackingRules(2))
    with pytest.raises(UserError, match="piece_length 63 does not fit"):
        plan_rows(data_set, "train", PackingRules(64, 63))
    with pytest.raises(UserError, match="piece_overlap 9 leaves nothing new"):
        plan_rows(data_set, "train", PackingRules(64, 9, 9))


@pytest.mark.parametrize(("sequence_length", "most"), [(512, 0.005), (128, 0.01)])
def test_padding_of_real_documents(real_data_set: Manifest, sequence_length: int, most: float) -> None:
    """Reference: the bound itself."""
    assert plan_rows(real_data_set, "train", PackingRules(sequence_length)).padding_share <= most


def test_a_plan_reads_a_small_part_of_the_shards_and_takes_hardly_any_time(
    make_data_set: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reference: the bytes of the documents' bounds with their headers; a third of the 100 million tokens a second that
    an idle machine surpasses, the best of three."""
    rng = np.random.default_rng(0)
    blocks = [rng.lognormal(5.7, 1.1, size=900).astype(int) + 1 for _ in range(4)]
    manifest = make_data_set([[lengths.tolist() for lengths in blocks]])
    asked: list[int] = []
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: (asked.append(size), real(file, size, offset))[1])
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        plan_rows(manifest, "train", PackingRules(512))
        seconds.append(time.perf_counter() - began)
    assert asked == 3 * [512 + 128 + 4 * 901] * 4
    assert manifest.splits["train"].tokens / min(seconds) > 3e7
