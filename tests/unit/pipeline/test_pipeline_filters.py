"""Named filters: each drops what it is for, equals its slow obvious reference, and leaves clean text alone."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline import filters as module
from data_pipeline.clean import clean
from data_pipeline.errors import UserError
from data_pipeline.filters import MIN_WORDS, NAMES, Failed, Filters, chosen

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
RNG = random.Random(0)
ENGLISH = " ".join("".join(RNG.choices("abcdefghij", k=RNG.randint(2, 8))) for _ in range(400))
CHINESE = "".join(chr(RNG.randint(0x4E00, 0x9FA5)) for _ in range(600))


def real_texts(corpus, count):
    """The first documents of a corpus, cleaned."""
    path = DATA / "pretrain" / corpus / "docs.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs ../shared/data/pretrain")
    import zstandard

    with zstandard.open(path, "rt", encoding="utf-8") as lines:
        return [clean(json.loads(line)["text"]) for _, line in zip(range(count), lines, strict=False)]


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


def slow_failed(filters, text):
    """The rule without bounds or hashes: every n in turn."""
    scale = 2 if module._characters_of(text).is_cjk else 1
    units = [c for c in text if not c.isspace()] if scale == 2 else text.split()
    if len(units) < MIN_WORDS * scale:
        return None
    for n, limit in enumerate(filters.max_top_ngrams + filters.max_repeated_ngrams, start=2):
        top = n < 2 + len(filters.max_top_ngrams)
        share = (slow_top_share if top else slow_repeated_share)(units, n * scale)
        if share > limit:
            gram = f"{n}-gram" if scale == 1 else f"{n * scale}-character string"
            what = f"the most frequent {gram}" if top else f"repeated {gram}s"
            return Failed("repeated-ngrams", f"{share:.0%} of the characters in {what}")
    return None


def repetitive(rng):
    """A text with runs of itself in it, English or Chinese, from hardly any to most of it."""
    letters, space = rng.choice([("abcdefgh", " "), ("中国人民大学的一是在", ""), ("éàabc", "\n"), ("ab", " ")])
    units = ["".join(rng.choices(letters, k=rng.randint(1, 6))) for _ in range(rng.randint(90, 300))]
    for _ in range(rng.randint(0, 12)):
        start, size, count = rng.randrange(len(units)), rng.randint(1, 40), rng.randint(1, 6)
        place = rng.randrange(len(units))
        units[place:place] = units[start : start + size] * count
    return space.join(units)


def test_bounds_change_no_outcome(monkeypatch):
    """Reference: the rule by tuples, sets and Counter, on random repetitive texts with several limits."""
    settled = []
    bound = module._surely_passes
    monkeypatch.setattr(module, "_surely_passes", lambda *given: settled.append(bound(*given)) or settled[-1])
    rng = random.Random(0)
    outcomes = []
    for number in range(240):
        text = repetitive(rng)
        strict = Filters(
            ("repeated-ngrams",), max_top_ngrams=(0.10, 0.08, 0.07), max_repeated_ngrams=(0.3, 0.9, 0.2, 0.2, 0.15, 0.1)
        )
        filters = strict if number % 2 else Filters(("repeated-ngrams",))
        outcomes.append(filters.failed(text) is not None)
        assert filters.failed(text) == slow_failed(filters, text), text[:200]
    assert 40 < sum(outcomes) < 200  # both outcomes, and the bounds settle some and leave some
    assert 20 < sum(settled) < len(settled) - 20


@pytest.mark.parametrize("corpus", ["en-peps", "en-novels", "zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
def test_bounds_change_no_outcome_on_real_text(corpus):
    """Reference: as above; the first characters of 25 documents, alone and once more after themselves."""
    for text in real_texts(corpus, 25):
        for part in (text[:2500], text[:400] + text[:2500]):
            filters = Filters(("repeated-ngrams",))
            assert filters.failed(part) == slow_failed(filters, part), part[:200]


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=300))
def test_no_text_crashes_a_filter(text):
    """Cleaned, as they come."""
    text = clean(text * 3)
    if text:
        Filters(min_characters=0).failed(text)


def test_names_are_chosen_by_a_list():
    """Reference: written by hand."""
    assert chosen("none") == ()
    assert chosen("all") == NAMES
    assert chosen("digits, length") == ("length", "digits")
    with pytest.raises(UserError, match="no filter 'lenght'; there are length"):
        chosen("lenght")


def test_languages_turn_their_filter_on():
    """Reference: written by hand."""
    pytest.importorskip("pycld2")
    assert chosen("all", ["en"]) == (*NAMES, "language")
    assert chosen("none", ["en", "und"]) == ("language",)
    with pytest.raises(UserError, match="needs --languages"):
        chosen("digits,language")
    with pytest.raises(UserError, match=r"no language 'eng'.* en"):
        chosen("all", ["eng"])


def test_other_languages_are_dropped_and_named():
    """Reference: written by hand; what is too short to tell is dropped unless it is asked for."""
    pytest.importorskip("pycld2")
    german = "Der Mond ist aufgegangen, die goldnen Sternlein prangen am Himmel hell und klar."
    filters = Filters(chosen("all", ["en", "zh"]), languages=("en", "zh"))
    assert filters.failed(german) == Failed("language", "de")
    assert filters.failed("-----") == Failed("symbols", "100% symbols")
    assert filters.failed("深度学习是机器学习的分支。") is None
    assert filters.failed("The moon has risen, and the golden stars shine in the sky.") is None
    assert Filters(chosen("none", ["en"]), languages=("en",)).failed("12 345") == Failed("language", "und")
    assert Filters(chosen("none", ["und"]), languages=("und",)).failed("12 345") is None
    assert filters.settings()["language_model"].startswith("pycld2 ")
    assert "language_model" not in Filters().settings()


@pytest.mark.parametrize("corpus", ["en-peps", "zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
def test_clean_corpora_keep_more_than_99_percent(corpus):
    """The default filters on real English and Chinese documentation, its first 300 documents."""
    texts = real_texts(corpus, 300)
    assert sum(Filters().failed(text) is not None for text in texts) <= len(texts) // 100
