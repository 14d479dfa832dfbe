"""Inputs: every format gives the same documents, every bad record is counted, a damaged file is named."""

import gzip
import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.clean import clean
from data_pipeline.dedup import SeenTexts, digest, is_validation
from data_pipeline.errors import DataError, UserError
from data_pipeline.sources import describe_inputs, read_units
from data_pipeline.texts import clean_texts, read_texts

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
TEXTS = ["one\ntwo", "深度学习", "Straße “quoted” 🙂", "x" * 3000]


def as_jsonl(texts):
    return "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts).encode()


def as_json(texts):
    return json.dumps([{"text": text} for text in texts]).encode()


def as_txt(texts):
    return "\n\n".join(texts).encode()


def zstd_frames(content):
    """Two frames end to end, which `cat a.zst b.zst` makes."""
    compress = zstandard.ZstdCompressor().compress
    return compress(content[:100]) + compress(content[100:])


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize(("suffix", "write"), [(".jsonl", as_jsonl), (".json", as_json), (".txt", as_txt)])
def test_every_format_and_compression_gives_the_same_texts(tmp_path, suffix, write, compression):
    """Reference: the texts that were written."""
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd_frames}[compression]
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(pack(write(TEXTS)))
    dropped = Counter()
    assert list(read_texts([path], "text", dropped)) == TEXTS
    assert not dropped


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 60))
def test_units_hold_every_line_once_in_order(tmp_path_factory, lines, unit_bytes):
    """Reference: bytes.split, at any size of a unit."""
    path = tmp_path_factory.mktemp("lines") / "corpus.jsonl"
    content = b"\n".join(lines)
    path.write_bytes(content)
    expected = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected  # a last line without its line feed is a line
    units = list(read_units([path], unit_bytes))
    assert [record for unit in units for record in unit.records] == expected
    assert sum(unit.read for unit in units) == (len(content) if expected else 0)


def test_every_kind_of_bad_record_is_counted(tmp_path):
    """Reference: the bad lines written, one or more of each kind."""
    lines = [
        b'\xef\xbb\xbf{"text": "first"}',
        b"",
        b"  ",
        b"{",
        b"[" * 100000,
        b'{"text": "\xff"}',
        b'["text"]',
        b'{"body": "x"}',
        b'{"text": 3}',
        b'{"text": null}',
        b'{"text": "\\u0000 \\ud800\\t"}',
        b'{"text": "a\\u0000b\\udfffc\\u000cd"}',
    ]
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b"\n".join(lines))
    dropped = Counter()
    assert list(read_texts([path], "text", dropped)) == ["first", "abc\nd"]
    assert dropped == {
        "blank line": 2,
        "not JSON": 2,
        "not UTF-8": 1,
        "not a JSON object": 1,
        "no field 'text'": 1,
        "field 'text' is not a string": 2,
        "empty after cleaning": 1,
    }


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut.jsonl.gz", gzip.compress(as_jsonl(TEXTS), mtime=0)[:-20]),
        ("no.jsonl.gz", b"this is no gzip"),
        ("cut.jsonl.zst", zstandard.ZstdCompressor().compress(as_jsonl(TEXTS))[:-20]),
        ("no.jsonl.zst", b"this is no zstd"),
        ("cut.json", as_json(TEXTS)[:-20]),
        ("object.json", b'{"text": "x"}'),
        ("latin.json", '["é"]'.encode("latin-1")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_damaged_as_a_whole_is_named(tmp_path, name, content):
    """Not silently half read: the rest of it would be missing."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name):
        list(read_units([path]))


def test_inputs_that_cannot_be_read_are_refused_before_the_work(tmp_path):
    """A folder, a missing file, an unknown kind."""
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "folder.txt").mkdir()
    for path, reason in (
        (tmp_path / "folder.txt", "not a file"),
        (tmp_path / "none.txt", "No such file"),
        (tmp_path / "notes.docx", "not a kind of input"),
    ):
        with pytest.raises(UserError, match=reason):
            describe_inputs([path])


@given(st.text(st.characters(exclude_categories=[]), max_size=60))
def test_cleaning_gives_encodable_normal_text_and_is_idempotent(text):
    """Reference: what unicodedata says of the outcome."""
    cleaned = clean(text)
    cleaned.encode()
    assert clean(cleaned) == cleaned == cleaned.strip()
    assert unicodedata.is_normalized("NFC", cleaned)
    assert not [c for c in cleaned if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r"]


@given(st.lists(st.text(max_size=5), unique=True, min_size=1), st.floats(0, 0.99))
def test_the_split_of_a_text_depends_on_nothing_else(texts, fraction):
    """And a larger fraction only adds to the texts held out."""
    held_out = [text for text in texts if is_validation(digest(text), fraction)]
    assert held_out == [text for text in texts if is_validation(digest(text), fraction)]
    assert all(is_validation(digest(text), (1 + fraction) / 2) for text in held_out)
    assert not any(is_validation(digest(text), 0.0) for text in texts)


def test_the_first_of_equal_texts_stays():
    """Reference: a set of the texts themselves."""
    seen = SeenTexts()
    texts = ["a", "b", "a", "c", "b", "d"]
    assert [text for text in texts if seen.first_time(digest(text))] == ["a", "b", "c", "d"]


def test_hostile_files_never_crash():
    """Every byte of the hostile files as .txt and as JSON Lines: each record becomes a text or is counted."""
    files = sorted(path for path in (DATA / "hostile").rglob("*") if path.is_file()) if DATA.is_dir() else []
    if not files:
        pytest.skip("needs ../shared/data/hostile")
    from data_pipeline.sources import Unit

    for path in files:
        records = path.read_bytes().split(b"\n")
        for file_format in (".txt", ".jsonl"):
            texts, dropped = clean_texts(Unit(file_format, records, 0), "text")
            assert len(texts) + sum(dropped.values()) == len(records)
