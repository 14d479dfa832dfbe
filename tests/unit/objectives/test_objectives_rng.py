"""Random numbers: a pure function that equals SplitMix64, uniform and independent in everything it is given."""

import itertools

import pytest
import torch
from objective_reference import slow_key, slow_word

from train.objectives.rng import below, hash_integers, hash_words, integers

ROWS = (-1, -(2**62), 0, 1, 2, 1000, 2**31, 2**40 + 7, 2**63 - 1)
OFFSETS = (-1, 0, 1, 2, 511, 8191, 2**33, 2**63 - 1)


def chi_square_is_usual(counts: torch.Tensor, expected: torch.Tensor | float, freedom: int) -> bool:
    """Within five standard deviations of the distribution's mean, on both sides: neither skewed nor too even."""
    statistic = float(((counts.double() - expected) ** 2 / expected).sum())
    return abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


def words(seed: int = 1, epoch: int = 0, stream: int = 0, rows: int = 400, offsets: int = 512) -> torch.Tensor:
    """A word for each place of each row, flat."""
    row_T = torch.arange(rows).repeat_interleave(offsets)
    return hash_words(seed, epoch, stream, row_T, torch.arange(offsets).repeat(rows))


@pytest.mark.parametrize("seed", [0, 1, 20240607, 2**32, 2**63 - 1])
@pytest.mark.parametrize("epoch", [0, 1, 77, -1, -5])
def test_words_equal_unbounded_integers_bit_for_bit(seed: int, epoch: int) -> None:
    """Reference: the chain in Python's unbounded integers, reduced modulo 2^64."""
    grid = list(itertools.product(ROWS, OFFSETS))
    row_T, offset_T = torch.tensor(grid).T
    for stream in range(4):
        expected = [slow_word(seed, epoch, stream, row, offset) for row, offset in grid]
        assert hash_words(seed, epoch, stream, row_T, offset_T).tolist() == expected


def test_keys_equal_unbounded_integers_and_the_published_generator() -> None:
    """Reference: the slow chain, and the first outputs that SplitMix64 is published with for the seed 1234567."""
    for values in itertools.product((0, 1, 2**63 - 1, -1, -7), (0, 5, -1), (0, 3)):
        assert hash_integers(*values) == slow_key(*values)
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = [1234567 + step * 0x9E3779B97F4A7C15 for step in range(4)]
    assert [hash_integers(state) for state in states] == published


def test_words_have_63_bits_and_do_not_repeat() -> None:
    """Reference: the documented range; 800,000 different words of 63 bits meet with a chance below one in 10^7."""
    every = torch.cat([words(stream=stream) for stream in range(4)])
    assert every.min() >= 0
    assert len(every.unique()) == len(every)
    assert every.max() > 0.999 * 2**63


@pytest.mark.parametrize("shift", [0, 7, 31, 55])
def test_every_part_of_a_word_is_uniform(shift: int) -> None:
    """Reference: the chi-square distribution with 255 degrees of freedom."""
    word_T = words()
    counts = torch.bincount((word_T >> shift) & 255, minlength=256)
    assert chi_square_is_usual(counts, len(word_T) / 256, 255)


@pytest.mark.parametrize("size", [1, 2, 7, 61, 1000, 30522])
def test_integers_are_uniform_over_their_range(size: int) -> None:
    """Reference: the chi-square distribution with size - 1 degrees of freedom."""
    word_T = words()
    numbers = integers(size, word_T)
    assert numbers.min() >= 0 and numbers.max() < size
    counts = torch.bincount(numbers, minlength=size)
    assert chi_square_is_usual(counts, len(word_T) / size, size - 1) or size == 1
    edges = torch.tensor([0, 2**63 - 1])
    assert integers(size, edges).tolist() == [0, size - 1]
    assert integers(2**31 - 1, edges).tolist() == [0, 2**31 - 2]


@pytest.mark.parametrize("share", [0.001, 0.1, 0.15, 0.5, 0.8, 0.999])
def test_below_is_true_for_its_share(share: float) -> None:
    """Reference: the binomial distribution, five standard deviations; and the exact bound in integers."""
    word_T = words()
    hits, trials = int(below(share, word_T).sum()), len(word_T)
    assert abs(hits - trials * share) < 5 * (trials * share * (1 - share)) ** 0.5
    bound = int(share * 2**63)
    assert below(share, torch.tensor([0, bound - 1, bound, 2**63 - 1])).tolist() == [True, True, False, False]


def test_below_zero_is_never_and_below_one_always() -> None:
    """Reference: the words themselves."""
    word_T = words()
    assert not below(0.0, word_T).any() and not below(0.0, torch.zeros(1, dtype=torch.int64)).any()
    assert below(1.0, word_T).all() and below(1.0 + 1e-12, word_T).all()


@pytest.mark.parametrize("shift", [0, 59])
@pytest.mark.parametrize(
    "other",
    [{"stream": 1}, {"stream": 3}, {"epoch": 1}, {"epoch": -1}, {"seed": 2}, {"seed": 3, "stream": 2}],
    ids=lambda other: " ".join(other),
)
def test_streams_epochs_and_seeds_are_independent(other: dict[str, int], shift: int) -> None:
    """Reference: the chi-square distribution of a table of 16 x 16 with independent margins."""
    left, right = (words() >> shift) & 15, (words(**other) >> shift) & 15
    assert chi_square_is_usual(torch.bincount(left * 16 + right, minlength=256), len(left) / 256, 255)


@pytest.mark.parametrize("shift", [0, 59])
@pytest.mark.parametrize("distance", [1, 2, 512, 513], ids=["next", "next but one", "next row", "diagonal"])
def test_neighbouring_tokens_are_independent(distance: int, shift: int) -> None:
    """Reference: the chi-square distribution of a table of 16 x 16 with independent margins."""
    part = (words() >> shift) & 15
    left, right = part[:-distance], part[distance:]
    assert chi_square_is_usual(torch.bincount(left * 16 + right, minlength=256), len(left) / 256, 255)


def test_the_order_of_seed_epoch_and_stream_matters() -> None:
    """Reference: every permutation of the three numbers has words of its own."""
    row_T, offset_T = torch.arange(64), torch.arange(64)
    drawn = [hash_words(*order, row_T, offset_T) for order in itertools.permutations((1, 2, 3))]
    assert len(torch.cat(drawn).unique()) == 6 * 64
