"""Named filters: each drops what it is for, equals its slow obvious reference, and leaves clean text alone."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.clean import clean
from data_pipeline.errors import UserError
from data_pipeline.filters import MIN_WORDS, NAMES, Filters, chosen, is_cjk

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
RNG = random.Random(0)
ENGLISH = " ".join("".join(RNG.choices("abcdefghij", k=RNG.randint(2, 8))) for _ in range(400))
CHINESE = "".join(chr(RNG.randint(0x4E00, 0x9FA5)) for _ in range(600))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("length", "abc"),
        ("length", "a" * 5_000_001),
        ("symbols", "=-" * 30 + " x"),
        ("symbols", "。，！？" * 9 + "中"),
        ("digits", "12 345 678 901 x y"),
        ("repeated-lines", "Home\nAbout\nContact\n" * 10),
        ("repeated-lines", "\n".join([*"abcdefghijkl", *["a very long line that is the same"] * 5])),
        ("repeated-ngrams", "buy now " * 100),
        ("repeated-ngrams", ENGLISH[:1000] + " " + " ".join([ENGLISH[1000:1300]] * 8)),
        ("repeated-ngrams", "买买买" * 100),
        ("repeated-ngrams", CHINESE[:100] + CHINESE[100:200] * 5),
    ],
    ids=range(11),
)
def test_a_filter_drops_what_it_is_for_and_no_other_does(name, text):
    """Alone and chosen among others; without it the text passes it by."""
    failed = Filters(names=(name,)).failed(text)
    assert failed is not None
    assert failed.name == name
    assert failed.measure
    assert Filters.none().failed(text) is None


@pytest.mark.parametrize("text", ["Hello.", ENGLISH, CHINESE, "深度学习是机器学习的分支。", ENGLISH + "\n" + CHINESE])
def test_plain_text_passes_every_filter(text):
    """Random words and characters, no space between the Chinese ones: no rule counts it as one endless word."""
    assert Filters().failed(text) is None


def slow_top_share(units, n):
    grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
    most = max((count * sum(map(len, gram)) for gram, count in Counter(grams).items() if count > 1), default=0)
    return most / sum(map(len, units))


def slow_repeated_share(units, n):
    seen, covered = set(), set()
    for i in range(len(units) - n + 1):
        gram = tuple(units[i : i + n])
        if gram in seen:
            covered.update(range(i, i + n))
        seen.add(gram)
    return sum(len(units[i]) for i in covered) / sum(map(len, units))


@given(st.integers(0, 10**6), st.sampled_from(["ab", "abcdefgh", "中国人民大学"]), st.integers(1, 9))
def test_repetition_is_gophers_by_a_slow_loop(seed, letters, longest):
    """Reference: sets of tuples, Rae et al. 2021 table A1; every limit alone, just below and at the share."""
    rng = random.Random(seed)
    chinese = letters > "z"
    words = ["".join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(250)]
    words[50:90] = words[10:50]
    text = ("" if chinese else " ").join(words)
    units, scale = (list(text), 2) if chinese else (words, 1)
    if len(units) < MIN_WORDS * scale:
        return
    for n in range(2, 11):
        share = (slow_top_share if n < 5 else slow_repeated_share)(units, n * scale)
        for limit, expected in ((share - 1e-9, share > 0), (share + 1e-9, False)):
            tops = tuple(limit if m == n else 1.0 for m in (2, 3, 4))
            repeated = tuple(limit if m == n else 1.0 for m in range(5, 11))
            filters = Filters(("repeated-ngrams",), max_top_ngrams=tops, max_repeated_ngrams=repeated)
            assert (filters.failed(text) is not None) == (expected and limit < 1), n


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_no_text_crashes_a_filter(text):
    """Cleaned, as they come."""
    text = clean(text * 3)
    if text:
        Filters(min_characters=0).failed(text)
        is_cjk(text)


def test_names_are_chosen_by_a_list():
    """Reference: written by hand."""
    assert chosen("none") == ()
    assert chosen("all") == NAMES
    assert chosen("digits, length") == ("length", "digits")
    with pytest.raises(UserError, match="no filter 'lenght'; there are length"):
        chosen("lenght")


@pytest.mark.parametrize("corpus", ["en-peps", "zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
def test_clean_corpora_keep_more_than_99_percent(corpus):
    """The default filters on real English and Chinese documentation, its first 300 documents."""
    path = DATA / "pretrain" / corpus / "docs.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs ../shared/data/pretrain")
    import zstandard

    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        texts = [clean(json.loads(line)["text"]) for _, line in zip(range(300), lines, strict=False)]
    assert sum(Filters().failed(text) is not None for text in texts) <= len(texts) // 100
