"""Mixtures: exact proportions, every row of a source once an epoch of its own, whatever happens to ranks and steps."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import UserError
from data_pipeline.manifest import Manifest, canonical_json
from train.data.batch import Batch
from train.data.epochs import EpochWalk
from train.data.mixture import MixtureWalk, Stage
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, plan_rows
from train.data.proportions import in_parts, source_counts
from train.data.stream import TrainStream

NAMES = ["en", "zh", "code"]
WEIGHTS = (0.6, 0.3, 0.1)


def sources(manifests: list[Manifest], length: int = 48) -> tuple[EpochWalk, ...]:
    rules = PackingRules(length)
    return tuple(EpochWalk(m, "train", plan_rows(m, "train", rules), seed=5) for m in manifests)


@pytest.fixture
def manifests(make_data_set: Callable) -> list[Manifest]:
    """Three data sets of different sizes."""
    return [make_data_set([[[40] * rows, [40] * rows]], seed=seed) for seed, rows in ((1, 30), (2, 17), (3, 4))]


def open_mixture(manifests: list[Manifest], *more: Stage, repeat: bool = True) -> MixtureWalk:
    return MixtureWalk([Stage(0, sources(manifests), WEIGHTS), *more], NAMES, seed=5, repeat=repeat)


def drawn(batches: list[Batch]) -> list[tuple[int, int]]:
    """(epoch, row among the rows of all sources) of each row; a document a row here."""
    ids = [row for batch in batches for row in batch.row_ids_D.tolist()]
    return [(row >> 40, row & (1 << 40) - 1) for row in ids]


def test_batches_have_the_exact_proportions_and_each_source_its_own_epochs(manifests: list[Manifest]) -> None:
    """Reference: the counts of proportions.py; within an epoch of a source each row is there once."""
    walk = open_mixture(manifests)
    sizes = [source.plan.rows for source in sources(manifests)]
    first_rows = np.cumsum([0, *sizes])
    seen: Counter = Counter()
    for batches, _ in islice(TrainStream(walk, Share(0, 1, 10, 50), walk.start), 60):
        seen.update(drawn(batches))
        assert all(batch.tokens == 42 * 10 for batch in batches), "no fillers"
    assert max(seen.values()) == 1
    totals = [
        sum(count for (_, row), count in seen.items() if first_rows[k] <= row < first_rows[k + 1]) for k in range(3)
    ]
    assert totals == source_counts(in_parts(WEIGHTS), 3000)
    for k, total in enumerate(totals):
        for epoch in range(total // sizes[k]):
            rows = [row for e, row in seen if e == epoch and first_rows[k] <= row < first_rows[k + 1]]
            assert sorted(rows) == list(range(first_rows[k], first_rows[k + 1]))


def test_without_word_starts_a_mixture_has_the_same_rows(manifests: list[Manifest]) -> None:
    """Reference: the mixture with word starts, over several epochs of the smallest source."""
    bare = tuple(EpochWalk(s._manifest, "train", s.plan, seed=5, word_starts=False) for s in sources(manifests))
    walks = open_mixture(manifests), MixtureWalk([Stage(0, bare, WEIGHTS)], NAMES, seed=5)
    cursor, share = walks[0].start, Share(1, 2, 5, 20)
    for _ in range(20):
        for whole, batch in zip(*(walk.batches(cursor, share) for walk in walks), strict=True):
            assert whole.word_starts_T is not None and batch.word_starts_T is None
            assert torch.equal(whole.ids_T, batch.ids_T) and torch.equal(whole.row_ids_D, batch.row_ids_D)
        cursor = walks[0].advance(cursor, share)


def test_each_super_block_is_mixed(manifests: list[Manifest]) -> None:
    """Reference: 60 % of any 250 rows of the first 1,000, within five standard deviations."""
    source_N, _ = open_mixture(manifests)._draw(Cursor(0, 0, begun=(0, 0, 0)), np.arange(1000))
    for start in range(0, 1000, 250):
        assert abs((source_N[start : start + 250] == 0).sum() - 150) < 5 * (250 * 0.6 * 0.4) ** 0.5


@given(
    stages=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 2), st.integers(1, 5)), min_size=1),
    change=st.integers(1, 12),
)
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_change_of_ranks_reads_the_rows_of_the_run_that_never_changed(
    manifests: list[Manifest], stages: list[tuple[int, int, int, int]], change: int
) -> None:
    """Reference: one rank reading the same global batches; weights change at a step, and the run stops and goes on
    from its state in between."""
    other = Stage(change, sources(manifests), (0.2, 0.2, 0.6))
    walk, reference = open_mixture(manifests, other), open_mixture(manifests, other)
    cursor, step, seen = walk.start, 0, Counter()
    for world_size, micro, accumulation, steps in stages:
        size = world_size * micro * accumulation
        cursor = walk.resume(json.loads(canonical_json(walk.state(cursor))))
        for _ in range(steps):
            cursor = walk.at(cursor, step)
            found = Counter()
            for rank in range(world_size):
                found.update(drawn(walk.batches(cursor, Share(rank, world_size, micro, size))))
            assert found == Counter(drawn(reference.batches(cursor, Share(0, 1, size, size))))
            seen += found
            cursor, step = walk.advance(cursor, Share(0, 1, size, size)), step + 1
    assert max(seen.values()) == 1, "epochs of the sources go on through the change"


def test_weights_change_at_a_step_and_the_sources_go_on(manifests: list[Manifest]) -> None:
    """Reference: the counts before and after the change, each by its own weights."""
    walk = open_mixture(manifests, Stage(7, sources(manifests), (1.0, 1.0, 2.0)))
    share, cursor = Share(0, 1, 10, 100), walk.start
    for step in range(12):
        cursor = walk.advance(walk.at(cursor, step), share)
    after = walk._read(cursor)
    assert list(cursor.begun) == walk._read(Cursor(0, 700, begun=(0, 0, 0)))
    assert all(abs(read - 700 * weight) < 60 for read, weight in zip(cursor.begun, WEIGHTS, strict=True))
    assert (cursor.epoch, sum(cursor.begun), sum(after)) == (1, 700, 1200)
    assert after[2] - cursor.begun[2] > 200, "about half of 500 where it was a tenth before"
    names = [f"epoch_{name}" for name in NAMES]
    rows = [source.plan.rows for source in sources(manifests)]
    assert walk.progress(cursor) == dict(zip(names, [a / r for a, r in zip(after, rows, strict=True)], strict=True))


def test_another_sequence_length_begins_new_epochs_of_new_rows(manifests: list[Manifest]) -> None:
    """Reference: the plan of that length: from the change on, each of its rows once."""
    long = sources(manifests, 96)
    walk = open_mixture(manifests, Stage(3, long, WEIGHTS, shrink=2))
    share, cursor, sizes, seen = Share(1, 2, 10, 40), walk.start, [], Counter()
    for step in range(5):
        cursor = walk.at(cursor, step)
        batches = walk.batches(cursor, share)
        sizes.append([len(set(batch.row_ids_D.tolist())) for batch in batches])
        if step >= 3:
            seen.update({row for batch in batches for row in batch.row_ids_D.tolist()})
        cursor = walk.advance(cursor, share)
    assert sizes == 3 * [[10, 10]] + 2 * [[5, 5]]
    assert max(seen.values()) == 1
    before = walk._read(Cursor(0, 120, begun=(0, 0, 0)))
    epochs = [-(-read // source.plan.rows) for read, source in zip(before, sources(manifests), strict=True)]
    assert cursor.begun == tuple(epoch * source.plan.rows for epoch, source in zip(epochs, long, strict=True))
    assert {row >> 40 for row in seen} == set(epochs)
    assert cursor.position == 2 * 20


def test_a_mixture_that_does_not_repeat_ends_before_a_row_comes_twice(manifests: list[Manifest]) -> None:
    """Reference: the rows of the source that ends first."""
    walk = open_mixture(manifests, repeat=False)
    share = Share(0, 1, 5, 5)
    *_, (_, cursor) = TrainStream(walk, share, walk.start)
    rows = [source.plan.rows for source in sources(manifests)]
    assert all(read <= most for read, most in zip(walk._read(cursor), rows, strict=True))
    more = walk._read(walk.advance(cursor, share))
    assert any(read > most for read, most in zip(more, rows, strict=True))


def test_masks_differ_from_epoch_to_epoch_and_from_source_to_source(manifests: list[Manifest]) -> None:
    """Reference: a set of the numbers that the masks are drawn from."""
    walk = open_mixture(manifests)
    batches = [b for step, _ in islice(TrainStream(walk, Share(0, 1, 10, 50), walk.start), 40) for b in step]
    numbers = torch.cat([batch.row_ids_D for batch in batches])
    assert len(numbers.unique()) == len(numbers) == 2000
    assert {batch.epoch for batch in batches} == {0}


def test_the_state_is_small_and_another_mixture_is_refused(manifests: list[Manifest]) -> None:
    """Reference: the bound of 300 bytes at large numbers; a weight, a source and a plan that differ."""
    walk = open_mixture(manifests)
    assert len(canonical_json(walk.state(Cursor(0, 10**12, begun=(10**12,) * 3)))) < 300
    state = json.loads(canonical_json(walk.state(Cursor(0, 120, begun=(0, 0, 0)))))
    assert walk.resume(state) == Cursor(0, 120, begun=(0, 0, 0))
    others = {
        "weights": MixtureWalk([Stage(0, sources(manifests), (0.5, 0.4, 0.1))], NAMES, 5),
        "sources": open_mixture([manifests[1], manifests[0], manifests[2]]),
        "plan": MixtureWalk([Stage(0, sources(manifests, 96), WEIGHTS)], NAMES, 5),
        "seed": MixtureWalk([Stage(0, sources(manifests), WEIGHTS)], NAMES, 6),
    }
    for name, other in others.items():
        with pytest.raises(UserError, match=rf"^{name} of the data stream"):
            other.resume(state)
    with pytest.raises(UserError, match="stage 3 of its mixture"):
        walk.resume(state | {"stage": 3})
