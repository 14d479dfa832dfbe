"""Micro-batches: what the rows say, token by token, with document bounds that are right."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from data_pipeline.manifest import Manifest
from train.data.batch import Batch, join_rows, make_batch, read_rows
from train.data.packing import PackingRules, RowPlan, plan_rows
from train.data.reader import ShardReader

CLS, SEP = 2, 3


def slow_documents(
    rows: list[int], plan: RowPlan, stored: list[list[tuple[tuple[int, ...], tuple[bool, ...]]]]
) -> Iterator[tuple[int, int, list[int], list[bool]]]:
    """(row, offset in the row, ids, word starts) of each document of a batch, one token after another."""
    for row in rows:
        if row < 0:
            yield -1, 0, [CLS, SEP], [True, True]
            continue
        block = next(b for b in range(len(stored)) if row < plan.rows_B[: b + 1].sum())
        ids = [token for document in stored[block] for token in document[0]]
        starts = [start for document in stored[block] for start in document[1]]
        offset = 0
        for piece in range(plan.row_pieces_R1[row], plan.row_pieces_R1[row + 1]):
            begin = int(plan.piece_start_P[piece])
            end = begin + int(plan.piece_length_P[piece])
            yield row, offset, [CLS, *ids[begin:end], SEP], [True, True, *starts[begin + 1 : end], True]
            offset += end - begin + 2


def assert_equal_documents(batch: Batch, expected: list[tuple[int, int, list[int], list[bool]]]) -> None:
    lengths = [len(ids) for _, _, ids, _ in expected]
    assert batch.lengths_D.tolist() == lengths
    assert batch.cu_seqlens_D1.tolist() == [0, *np.cumsum(lengths).tolist()]
    assert batch.row_ids_D.tolist() == [row for row, _, _, _ in expected]
    assert batch.row_offsets_D.tolist() == [offset for _, offset, _, _ in expected]
    assert batch.ids_T.tolist() == [token for _, _, ids, _ in expected for token in ids]
    assert batch.word_starts_T.tolist() == [start for _, _, _, starts in expected for start in starts]


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
@pytest.mark.parametrize("sequence_length", [3, 17, 128, 1024])  # few pieces a row, and many
def test_a_batch_equals_gathering_token_by_token(
    make_data_set: Callable, stored_documents: Callable, sequence_length: int, dtype: str
) -> None:
    """Reference: a loop over documents that the tarfile module read, at random rows with fillers among them."""
    rng = np.random.default_rng(3)
    shards = [[rng.integers(1, 90, size=size).tolist() for size in sizes] for sizes in [(12, 1), (60,)]]
    manifest = make_data_set(shards, dtype=dtype)
    plan, reader = plan_rows(manifest, "train", PackingRules(sequence_length)), ShardReader(manifest, "train")
    stored = stored_documents(manifest, "train")
    for _ in range(10):
        rows = rng.integers(-1, plan.rows, size=7)
        batch = make_batch(rows, plan, reader, manifest.special_ids, epoch=5)
        assert_equal_documents(batch, list(slow_documents(rows.tolist(), plan, stored)))
        assert batch.epoch == 5
        assert batch.tokens == len(batch.ids_T) - 2 * int((rows < 0).sum())
        assert (batch.rows, batch.damaged_rows) == (int((rows >= 0).sum()), 0)


@pytest.mark.parametrize("sequence_length", [17, 1024])  # short pieces, and long ones
def test_without_word_starts_a_batch_is_the_same_but_for_them(data_set: Manifest, sequence_length: int) -> None:
    """Reference: the batch with word starts."""
    plan, reader = plan_rows(data_set, "train", PackingRules(sequence_length)), ShardReader(data_set, "train")
    rows = np.array([0, -1, plan.rows - 1, 1])
    whole = make_batch(rows, plan, reader, data_set.special_ids, epoch=0)
    batch = make_batch(rows, plan, reader, data_set.special_ids, epoch=0, word_starts=False)
    assert batch.word_starts_T is None and batch.to("cpu").word_starts_T is None
    for name in ("ids_T", "cu_seqlens_D1", "row_ids_D", "row_offsets_D"):
        assert torch.equal(getattr(batch, name), getattr(whole, name))
    assert (batch.lengths_D.tolist(), batch.tokens) == (whole.lengths_D.tolist(), whole.tokens)


def test_a_batch_of_fillers_alone_has_no_ordinary_token(data_set: Manifest) -> None:
    """Reference: [CLS] [SEP] for each row."""
    plan, reader = plan_rows(data_set, "train", PackingRules(64)), ShardReader(data_set, "train")
    batch = make_batch(np.full(3, -1), plan, reader, data_set.special_ids, epoch=0)
    assert_equal_documents(batch, [(-1, 0, [CLS, SEP], [True, True])] * 3)
    assert batch.tokens == 0


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_ids_travel_as_they_are_stored_and_become_integers_on_the_device(make_data_set: Callable, dtype: str) -> None:
    """Reference: the type of the shards, and what embeddings and losses take."""
    manifest = make_data_set([[[5, 9, 30], [12]]], dtype=dtype)
    plan, reader = plan_rows(manifest, "train", PackingRules(64)), ShardReader(manifest, "train")
    batch = make_batch(np.arange(2), plan, reader, manifest.special_ids, epoch=0)
    assert (batch.ids_T.dtype, batch.word_starts_T.dtype) == (getattr(torch, dtype), torch.bool)
    assert (batch.cu_seqlens_D1.dtype, batch.lengths_D.dtype) == (torch.int32, np.int64)
    assert (batch.row_ids_D.dtype, batch.row_offsets_D.dtype) == (torch.int64, torch.int64)
    moved = batch.to("cpu")
    assert moved.ids_T.dtype == torch.int64
    assert moved.ids_T.tolist() == batch.ids_T.tolist()


def test_joined_rows_of_two_data_sets_are_the_rows_of_both(make_data_set: Callable) -> None:
    """Reference: the batches of each alone, one after the other."""
    alone, parts = [], []
    for seed, rows in ((1, [1, -1, 0]), (2, [0])):
        manifest = make_data_set([[[20, 31, 9, 40]]], seed=seed)
        plan, reader = plan_rows(manifest, "train", PackingRules(48)), ShardReader(manifest, "train")
        alone.append(make_batch(np.array(rows), plan, reader, manifest.special_ids, epoch=0))
        parts.append(read_rows(np.array(rows), plan, reader, manifest.special_ids))
    batch = join_rows(parts, epoch=7)
    for name in ("ids_T", "word_starts_T", "lengths_D", "row_ids_D", "row_offsets_D"):
        assert getattr(batch, name).tolist() == [*getattr(alone[0], name).tolist(), *getattr(alone[1], name).tolist()]
    assert batch.cu_seqlens_D1.tolist() == [0, *np.cumsum(batch.lengths_D).tolist()]
    assert (batch.tokens, batch.rows, batch.epoch) == (alone[0].tokens + alone[1].tokens, 3, 7)


def test_moving_a_batch_moves_its_tensors_and_keeps_the_rest(data_set: Manifest) -> None:
    """Reference: the batch itself, moved to the device that stores nothing."""
    plan, reader = plan_rows(data_set, "train", PackingRules(64)), ShardReader(data_set, "train")
    batch = make_batch(np.arange(4), plan, reader, data_set.special_ids, epoch=2)
    moved = batch.to("meta")
    for name in ("ids_T", "word_starts_T", "cu_seqlens_D1", "row_ids_D", "row_offsets_D"):
        assert getattr(moved, name).is_meta
        assert getattr(moved, name).shape == getattr(batch, name).shape
    assert (moved.epoch, moved.tokens, moved.lengths_D is batch.lengths_D) == (2, batch.tokens, True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_batch_is_pinned_and_arrives_on_the_gpu_unchanged(data_set: Manifest) -> None:
    """Reference: the batch on the host."""
    plan, reader = plan_rows(data_set, "train", PackingRules(64)), ShardReader(data_set, "train")
    batch = make_batch(np.arange(4), plan, reader, data_set.special_ids, epoch=0)
    assert batch.ids_T.is_pinned() and batch.word_starts_T.is_pinned()
    assert torch.equal(batch.to("cuda").ids_T.cpu(), batch.ids_T)
