"""Units of a text, in any language: its words, and each CJK character alone, as hashes; and n-grams of them.

What is no letter, digit or combining mark only separates; case is ignored. All hashes are 64 bits and the same on every
machine: the polynomial sum of code * BASE**place, by prefix sums, then mixed.
Legend: C characters, U units, N n-grams, T texts.
"""

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.unicode_tables import ALIKE, other_codes

RULES = "words of letters, digits and marks, lower case; CJK by characters"  # in the manifest: part of the outcome
_BASE = 0xD1342543DE82EF95  # odd, so that it has an inverse modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_POWERS = 1 << 17  # kept, for most batches
_BATCH = 1 << 16  # characters
_CJK_FLAG = 1 << 24  # above all code points
_CJK_RANGES = (
    (0x3040, 0x3100),
    (0x3400, 0x4DC0),
    (0x4E00, 0xA000),
    (0xAC00, 0xD7B0),
    (0xF900, 0xFB00),
    (0x20000, 0x40000),
)

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


class Units(NamedTuple):
    """The units of some texts, end to end."""

    hashes_U: Hashes
    is_cjk_U: npt.NDArray[np.bool_]  # a character of its own
    starts_U: Places  # characters from the start of the joined texts
    ends_U: Places
    firsts_T1: Places  # the first unit of each text, and at last U


class Grams(NamedTuple):
    """The n-grams of some texts, end to end."""

    hashes_N: Hashes
    starts_N: Places  # their first unit
    ends_N: Places  # behind their last unit
    firsts_T1: Places  # the first n-gram of each text, and at last N


def unit_hashes(text: str) -> Hashes:
    """uint64[U]: the hash of each unit of `text` in order; equal units have equal hashes."""
    return units([text]).hashes_U


def units(texts: Sequence[str]) -> Units:
    """The units of `texts`; none crosses from one text to the next."""
    codes_C = _code_table()[np.frombuffer("\n".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)]
    is_cjk_C = codes_C >= _CJK_FLAG
    starts_U, ends_U = _edges(codes_C != 0, is_cjk_C)
    edges_T1 = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Units(
        span_hashes(codes_C, starts_U, ends_U),
        is_cjk_C[starts_U],
        starts_U,
        ends_U,
        np.searchsorted(starts_U, edges_T1),
    )


def grams(found: Units, words: int, characters: int, cut_first: bool = False) -> Grams:
    """The n-grams of each text: of `words` units where the first one is a word, of `characters` where it is CJK.

    The length hangs on the first unit alone, so equal passages have equal n-grams whatever stands around them. With
    `cut_first` the one at the start of a text ends where the text ends: no text with a unit is without n-gram.
    """
    firsts_T1, count = found.firsts_T1, len(found.hashes_U)
    last_U = np.repeat(firsts_T1[1:], np.diff(firsts_T1))  # where the text of each unit ends
    ends_U = np.arange(count) + np.where(found.is_cjk_U, characters, words)
    if cut_first:
        first_T = firsts_T1[:-1][np.diff(firsts_T1) > 0]
        ends_U[first_T] = np.minimum(ends_U[first_T], last_U[first_T])
    starts_N = np.flatnonzero(ends_U <= last_U)
    ends_N = ends_U[starts_N]
    hashes_N = span_hashes(found.hashes_U, starts_N, ends_N)
    return Grams(hashes_N, starts_N, ends_N, np.searchsorted(starts_N, firsts_T1))


def in_batches(texts: Sequence[str]) -> Iterator[tuple[int, Sequence[str]]]:
    """Consecutive texts of about 65,536 characters, whose arrays stay in the cache, and the place of the first one."""
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= _BATCH or index == len(texts) - 1:
            yield start, texts[start : index + 1]
            start, size = index + 1, 0


def span_hashes(values: npt.NDArray[np.uint32] | Hashes, starts: Places, ends: Places) -> Hashes:
    """uint64: a hash of values[start:end] for each pair; equal spans have equal hashes wherever they stand."""
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * _powers(_BASE, len(values)), out=sums[1:])
    return mixed((sums[ends] - sums[starts]) * _powers(_INVERSE, len(values) + 1)[starts])


def mixed(hashes: Hashes) -> Hashes:
    """uint64: the finaliser of splitmix64 (Steele et al. 2014): one to one, every bit hangs on every bit."""
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return hashes ^ (hashes >> np.uint64(31))


def _edges(inside_C: npt.NDArray[np.bool_], is_cjk_C: npt.NDArray[np.bool_]) -> tuple[Places, Places]:
    """Where units start and end: between inside and outside, and on both sides of a CJK character."""
    apart_C = is_cjk_C[1:] | is_cjk_C[:-1]  # from the character before
    starts_C, ends_C = inside_C.copy(), inside_C.copy()
    starts_C[1:] &= ~inside_C[:-1] | apart_C
    ends_C[:-1] &= ~inside_C[1:] | apart_C
    return np.flatnonzero(starts_C), np.flatnonzero(ends_C) + 1


def _powers(base: int, count: int) -> Hashes:
    """base**0 to base**(count - 1) modulo 2**64."""
    table = _power_table(base)
    if count <= _POWERS:
        return table[:count]
    steps = _power_table(pow(base, _POWERS, 1 << 64))[: -(-count // _POWERS)]  # up to 2**32 values
    return np.multiply.outer(steps, table).ravel()[:count]


@cache
def _power_table(base: int) -> Hashes:
    table = np.full(_POWERS, base, np.uint64)
    table[0] = 1
    return np.multiply.accumulate(table)


@cache
def _code_table() -> npt.NDArray[np.uint32]:
    """For each code point its lower case, with _CJK_FLAG where it is a unit of its own; 0 where it separates."""
    lower = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    for first, last in ALIKE:
        lower[first : last + 1] *= np.uint32(_lower(chr(first)) != 0)
    codes = np.fromiter(other_codes(), np.intp)
    lower[codes] = [_lower(chr(code)) for code in codes.tolist()]
    for first, end in _CJK_RANGES:
        lower[first:end] += np.uint32(_CJK_FLAG) * (lower[first:end] != 0)
    return lower


def _lower(character: str) -> int:
    if unicodedata.category(character)[0] not in "LNM":
        return 0
    lower = character.lower()
    return ord(lower) if len(lower) == 1 else ord(character)
