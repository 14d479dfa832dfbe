"""Counts of a mixture: they add up, never fall, and stay beside the exact share."""

from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from train.data.proportions import PARTS, in_parts, source_counts


def slow_counts(parts: list[int], rows: int) -> list[int]:
    """Webster's method row by row: the next row goes to the source whose next half is reached first."""
    counts = [0] * len(parts)
    for _ in range(rows):
        shares = [Fraction(2 * count + 1, part) for count, part in zip(counts, parts, strict=True)]
        counts[shares.index(min(shares))] += 1
    return counts


@given(parts=st.lists(st.integers(1, 30), min_size=1, max_size=7), rows=st.integers(0, 60))
@settings(deadline=None, max_examples=200)
def test_counts_are_those_of_websters_method(parts: list[int], rows: int) -> None:
    """Reference: the method row by row; equal halves, as of equal weights, go to the first source."""
    assert source_counts(parts, rows) == slow_counts(parts, rows)


@given(
    weights=st.lists(st.floats(1e-9, 1e3), min_size=1, max_size=12),
    rows=st.integers(0, 10**13),
    more=st.integers(0, 3000),
)
@settings(deadline=None, max_examples=200)
def test_counts_add_up_and_never_fall(weights: list[float], rows: int, more: int) -> None:
    """Reference: the number of rows, and the counts of fewer rows."""
    parts = in_parts(weights)
    before, after = source_counts(parts, rows), source_counts(parts, rows + more)
    assert (sum(before), sum(after)) == (rows, rows + more)
    assert all(b <= a for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("weights", [(0.7, 0.2, 0.1), (1, 1, 1), (5, 3, 1, 1), (0.9999, 0.0001)])
def test_counts_stay_within_a_row_of_the_exact_share(weights: tuple[float, ...]) -> None:
    """Reference: weight times rows."""
    parts = in_parts(weights)
    for rows in (1, 999, 1000, 10**6 + 17, 10**12 + 1):
        for count, part in zip(source_counts(parts, rows), parts, strict=True):
            assert abs(count - Fraction(part * rows, sum(parts))) <= 1


def test_weights_become_parts_of_a_million_whatever_their_sum() -> None:
    """Reference: the shares worked out by hand; none becomes zero."""
    assert in_parts([2, 1, 1]) == (PARTS // 2, PARTS // 4, PARTS // 4)
    assert in_parts([1e9, 1.0]) == (PARTS, 1)
