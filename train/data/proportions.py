"""Owns how many of the first n rows of a mixture come from each source: a pure function of the weights.

Webster's method of apportionment (Balinski and Young 1982, "Fair Representation"): the count of source k is w_k times a
common multiplier, rounded. The counts add up to n, and, unlike those of the largest remainders, none ever falls when n
grows: what was read stays read.

Legend: K sources.
"""

from collections.abc import Sequence

PARTS = 1_000_000


def in_parts(weights_K: Sequence[float]) -> tuple[int, ...]:
    """The weights as whole parts of a million, at least one each: what two machines compare must not be rounded."""
    total = sum(weights_K)
    return tuple(max(1, round(PARTS * weight / total)) for weight in weights_K)


def source_counts(parts_K: Sequence[int], rows: int) -> list[int]:
    """How many of the first `rows` rows of the mixture each source has; O(K^2) whatever `rows`."""
    total = sum(parts_K)
    counts_K = [(2 * parts * rows + total) // (2 * total) for parts in parts_K]  # w_k n, rounded: off by K / 2 at most
    while sum(counts_K) < rows:
        counts_K[_next_to_rise(parts_K, counts_K)] += 1
    while sum(counts_K) > rows:
        counts_K[_last_to_rise(parts_K, counts_K)] -= 1
    return counts_K


def _next_to_rise(parts_K: Sequence[int], counts_K: Sequence[int]) -> int:
    """The source that reaches its next half first: the smallest (count + 1/2) / weight, the first of equals."""
    best = 0
    for k in range(1, len(parts_K)):
        if (2 * counts_K[k] + 1) * parts_K[best] < (2 * counts_K[best] + 1) * parts_K[k]:
            best = k
    return best


def _last_to_rise(parts_K: Sequence[int], counts_K: Sequence[int]) -> int:
    """The source that reached its last half last: the largest (count - 1/2) / weight, the last of equals."""
    best = len(parts_K) - 1
    for k in range(len(parts_K) - 2, -1, -1):
        if (2 * counts_K[k] - 1) * parts_K[best] > (2 * counts_K[best] - 1) * parts_K[k]:
            best = k
    return best
