"""Tables over all characters, made from a function of one: quickly, as long stretches of Unicode are all alike."""

import sys
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import numpy.typing as npt

# First and last of ideographs, Korean syllables, private characters and characters that were never given a meaning: in
# each the category and what follows from it are the same for all. They are nine tenths of Unicode.
ALIKE = (
    (0x3400, 0x4DB5),
    (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3),
    (0xE000, 0xF8FF),
    (0x20000, 0x2A6D6),
    (0x2A700, 0x2B734),
    (0x2B740, 0x2B81D),
    (0x2B820, 0x2CEA1),
    (0x2CEB0, 0x2EBE0),
    (0x30000, 0x3134A),
    (0x40000, 0xDFFFD),
    (0xF0000, 0xFFFFD),
    (0x100000, 0x10FFFD),
)


def tabulate(value: Callable[[str], int]) -> npt.NDArray[np.uint8]:
    """uint8[0x110000]: value(character) for every character; it must be the same within each stretch of ALIKE."""
    table = np.zeros(sys.maxunicode + 1, np.uint8)
    for first, last in ALIKE:
        table[first : last + 1] = value(chr(first))
    codes = np.fromiter(other_codes(), np.intp)
    table[codes] = [value(chr(code)) for code in codes.tolist()]
    return table


def other_codes() -> Iterator[int]:
    """The characters outside of ALIKE."""
    ends = [0, *(last + 1 for _, last in ALIKE)]
    starts = [*(first for first, _ in ALIKE), sys.maxunicode + 1]
    return chain.from_iterable(map(range, ends, starts))
