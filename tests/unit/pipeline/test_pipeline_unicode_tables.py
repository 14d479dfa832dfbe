"""Tables over all characters: the shortcut for stretches that are alike changes no entry."""

import sys
import unicodedata

import numpy as np
import pytest

from data_pipeline import characters, filters
from data_pipeline.dedup import units
from data_pipeline.unicode_tables import ALIKE, other_codes, tabulate

ALL = range(sys.maxunicode + 1)


def test_every_character_is_alike_or_other_once():
    """Reference: all code points."""
    alike = [code for first, last in ALIKE for code in range(first, last + 1)]
    assert sorted([*alike, *other_codes()]) == list(ALL)


@pytest.mark.parametrize(
    "value",
    [
        lambda c: sum(map(ord, unicodedata.category(c))) % 256,
        lambda c: c.isspace() + 2 * c.isalnum() + 4 * c.isprintable() + 8 * (c.lower() == c),
    ],
    ids=["category", "methods"],
)
def test_a_table_has_the_value_of_every_character(value):
    """Reference: the function, character by character."""
    expected = np.array([value(chr(code)) for code in ALL], np.uint8)
    np.testing.assert_array_equal(tabulate(value), expected)


def test_the_tables_of_filters_and_units_are_those_of_their_functions():
    """Reference: their functions, character by character."""
    expected = np.array([filters._class(chr(code)) for code in ALL], np.uint8)
    np.testing.assert_array_equal(filters._class_table(), expected)
    lower = np.array([units._lower(chr(code)) for code in ALL], np.uint32)
    np.testing.assert_array_equal(units._code_table() & np.uint32(units._CJK_FLAG - 1), lower)


def test_the_table_of_proven_characters_is_that_of_its_functions():
    """Reference: its functions, character by character; beyond the first 65,536 emojis and rare ideographs only."""
    numbers = [*range(0x10000), *(number for emojis in characters._EMOJIS for number in emojis)]
    first, expected = np.zeros(len(ALL), np.uint8), np.zeros(len(ALL), np.uint8)
    for number in numbers:
        first[number] = characters._class_if_old(number)
    for number in numbers:
        if first[number] and not characters._is_changed(number, first):
            expected[number] = first[number]
    expected[characters._RARE_IDEOGRAPHS] = characters.IDEOGRAPH
    np.testing.assert_array_equal(characters._table(), expected)
