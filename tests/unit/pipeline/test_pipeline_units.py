"""Units and their n-grams: equal hashes mean equal units, on real text in two languages and on hostile strings."""

import io
import itertools
import json
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.dedup.units import _POWERS, grams, in_batches, span_hashes, unit_hashes, units
from data_pipeline.filters import _CJK

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
CJK = re.compile(f"[{_CJK}]")


def slow_units(text):
    """The units of a text, a character at a time."""
    found, word = [], ""
    for character in text:
        lower = character.lower()
        lower = lower if len(lower) == 1 else character
        inside = unicodedata.category(character)[0] in "LNM"
        if inside and not CJK.match(character):
            word += lower
            continue
        found += [word] if word else []
        word = ""
        if inside:
            found.append(lower)
    return found + ([word] if word else [])


def real_texts(name, count):
    """The first documents of a corpus."""
    path = DATA / "pretrain" / name / "docs.jsonl.zst"
    if not path.exists():
        pytest.skip("needs ../shared/data/pretrain")
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"][:200_000] for line in itertools.islice(lines, count)]


def assert_same_units(texts):
    """Equal units have equal hashes and different ones different hashes, in the same order."""
    names = [unit for text in texts for unit in slow_units(text)]
    found = units(texts)
    assert len(found.hashes_U) == len(names)
    assert len(set(zip(names, found.hashes_U.tolist(), strict=True))) == len(set(names)) == len(set(found.hashes_U))


@pytest.mark.parametrize("name", ["en-peps", "en-novels", "zh-javaguide"])
def test_hashes_are_equal_where_units_are_equal_in_real_text(name):
    """A slow reference that walks over the characters gives the same units; no two of them have one hash."""
    assert_same_units(real_texts(name, 4))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text(alphabet=st.one_of(st.characters(), st.sampled_from("aAéßİǅ中の한ー々・ \n'-.9\u0301\U00020000"))))
)
def test_hashes_are_equal_where_units_are_equal_in_any_text(texts):
    """As above, with any Unicode, surrogates and empty texts; no unit crosses from one text to the next."""
    assert_same_units(texts)


def test_case_punctuation_and_white_space_make_no_difference():
    """The property near duplicates rest on."""
    assert np.array_equal(unit_hashes("The cat, the MAT: 中国!"), unit_hashes("  the Cat\nTHE mat 中 国"))
    assert not np.array_equal(unit_hashes("the cat"), unit_hashes("thecat"))


def test_units_know_their_place_in_the_joined_texts():
    """starts_U and ends_U cut the unit itself out of the texts joined with line feeds."""
    texts = ["Ünïts, of", "", "some 中国 texts"]
    found, joined = units(texts), "\n".join(texts)
    cut = [joined[start:end] for start, end in zip(found.starts_U, found.ends_U, strict=True)]
    assert cut == ["Ünïts", "of", "some", "中", "国", "texts"]
    assert found.firsts_T1.tolist() == [0, 2, 2, 6]


@pytest.mark.parametrize("cut_first", [False, True])
def test_grams_have_the_length_of_their_first_unit_and_stay_in_their_text(cut_first):
    """Compared with slices of the slow units: same n-grams, and equal hashes only for equal n-grams."""
    texts = ["a b c d 中 文 字 e f", "", "a b", "中 a b", "中文", "!", "b c d 中 文 字 e"]
    made = grams(units(texts), 3, 4, cut_first)
    expected, firsts = [], [0]
    for text in texts:
        names = slow_units(text)
        for start, name in enumerate(names):
            length = 4 if CJK.match(name) else 3
            if start + length <= len(names) or (cut_first and start == 0):
                expected.append(tuple(names[start : start + length]))
        firsts.append(len(expected))
    assert made.firsts_T1.tolist() == firsts
    assert len(made.hashes_N) == len(expected)
    pairs = set(zip(expected, made.hashes_N.tolist(), strict=True))
    assert len(pairs) == len(set(expected)) == len(set(made.hashes_N.tolist()))


def test_span_hashes_are_the_same_wherever_a_span_stands():
    """Also far behind the table of powers; the reference multiplies Python integers."""
    rng = np.random.default_rng(0)
    part = rng.integers(1, 1 << 20, 50).astype(np.uint32)
    values = np.concatenate([rng.integers(1, 1 << 20, 3 * _POWERS + 7).astype(np.uint32), part])
    values[100:150] = part
    first, last = len(values) - 50, len(values)
    hashes = span_hashes(values, np.array([100, first, 101]), np.array([150, last, 151]))
    assert hashes[0] == hashes[1] != hashes[2]
    assert hashes[0] == span_hashes(part, np.array([0]), np.array([50]))[0]


def test_batches_hold_every_text_once_and_in_order():
    """Whatever the sizes, a text larger than a batch included."""
    texts = ["a" * size for size in (10, 70_000, 0, 65_000, 600, 3, 0)]
    batches = list(in_batches(texts))
    assert [text for _, batch in batches for text in batch] == texts
    assert [start for start, _ in batches] == [0, 2, 5]
    assert list(in_batches([])) == []
