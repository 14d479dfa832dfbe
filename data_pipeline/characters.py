"""What BERT's normalizer and pre-tokenizer do to single characters, for those whose treatment never changed.

A character is *proven* when every version of Unicode since 3.2 says the same of it and what it decomposes to is treated
like itself, or when it is one of the oldest emojis. Text of proven characters alone is a sequence of characters that do
not act on each other, so a test of each is a test of all. Legend: C characters.
"""

import sys
import unicodedata
from functools import cache
from itertools import chain

import numpy as np
import numpy.typing as npt

from data_pipeline.unicode_tables import ALIKE, other_codes

UNPROVEN, SPACE, LETTER, PUNCTUATION, IDEOGRAPH = range(5)
_EMOJIS = (range(0x1F300, 0x1F57A), range(0x1F5FB, 0x1F650), range(0x1F680, 0x1F6C6))
# Of the blocks for which BERT puts spaces around each character, those that Unicode 3.2 had.
_IDEOGRAPHS = (range(0x3400, 0x4DC0), range(0x4E00, 0xA000), range(0xF900, 0xFB00))
_RARE_IDEOGRAPHS = slice(0x20000, 0x2A6D7)  # beyond the first 65,536, all alike
_FIRST_BLOCKS = 0x10000
_ALIKE = [stretch for stretch in ALIKE if stretch[1] < _FIRST_BLOCKS]
_CONTROLS = {"\t": SPACE, "\n": SPACE, "\r": SPACE}


def classes(text: str) -> npt.NDArray[np.uint8]:
    """uint8[C]: UNPROVEN, SPACE, LETTER (part of a word), PUNCTUATION or IDEOGRAPH (each a word of its own)."""
    return _table()[np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)]


def first_characters(classes_C: npt.NDArray[np.uint8]) -> npt.NDArray[np.intp]:
    """Where the words of the pre-tokenizer begin in a text of proven characters."""
    letter_C = classes_C == LETTER
    starts_C = letter_C.copy()
    starts_C[1:] &= ~letter_C[:-1]
    return np.flatnonzero(starts_C | (classes_C > LETTER))


@cache
def _table() -> npt.NDArray[np.uint8]:
    """uint8[0x110000]: the class of every character."""
    table = np.full(sys.maxunicode + 1, UNPROVEN, np.uint8)
    numbers = [*(number for number in other_codes() if number < _FIRST_BLOCKS), *chain(*_EMOJIS)]
    for number in numbers:
        table[number] = _class_if_old(number)
    for first, last in _ALIKE:
        table[first : last + 1] = _class_if_old(first)
    for number in numbers:
        if table[number] and _is_changed(number, table):
            table[number] = UNPROVEN
    for first, last in _ALIKE:
        if _is_changed(first, table):
            table[first : last + 1] = UNPROVEN
    table[_RARE_IDEOGRAPHS] = IDEOGRAPH
    return table


def _class_if_old(number: int) -> int:
    """The class of a character whose category is that of Unicode 3.2; of the oldest emojis, too."""
    character = chr(number)
    category = unicodedata.category(character)
    known = category == unicodedata.ucd_3_2_0.category(character) or any(number in emojis for emojis in _EMOJIS)
    return _class(character, category) if known else UNPROVEN


def _is_changed(number: int, table: npt.NDArray[np.uint8]) -> bool:
    """Whether what a character decomposes to is treated otherwise than itself."""
    decomposed = unicodedata.normalize("NFD", chr(number))
    return not _marks_only(decomposed[1:]) or bool(table[ord(decomposed[0])] != table[number])


def _class(character: str, category: str) -> int:
    if category[0] in "CM" or category in ("Zl", "Zp") or character == "\ufffd":  # which BERT takes out
        return _CONTROLS.get(character, UNPROVEN)
    if category == "Zs":
        return SPACE
    if any(ord(character) in block for block in _IDEOGRAPHS):
        return IDEOGRAPH
    # BERT counts all of ASCII's symbols as punctuation, "$" and "+" too.
    if category[0] == "P" or (character.isascii() and not character.isalnum()):
        return PUNCTUATION
    return LETTER


def _marks_only(characters: str) -> bool:
    """Accents, or the later parts of a Korean syllable."""
    return all(unicodedata.category(c) == "Mn" or "\u1160" <= c <= "\u11ff" for c in characters)
