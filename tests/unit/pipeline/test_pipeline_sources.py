"""Inputs: every format gives the same documents, every bad record is counted, a damaged file is named."""

import gzip
import json
import re
import unicodedata
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.clean import clean, has_unwanted, unwanted_kinds
from data_pipeline.errors import DataError, UserError
from data_pipeline.formats import FORMATS, Stretch
from data_pipeline.held_out import digest, validation_limit
from data_pipeline.inputs import find_inputs
from data_pipeline.notes import Notes
from data_pipeline.sources import Reading, file_units, read_units
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


def as_csv(texts):
    import csv
    import io

    file = io.StringIO()
    csv.writer(file).writerows([["id", "text"], *([str(number), text] for number, text in enumerate(texts))])
    return file.getvalue().encode()


def as_parquet(texts):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.table({"id": range(len(texts)), "text": texts}), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def as_arrow(texts, kind="new_stream"):
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"text": pyarrow.array(texts).dictionary_encode(), "id": range(len(texts))})
    sink = pyarrow.BufferOutputStream()
    with getattr(pyarrow.ipc, kind)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue().to_pybytes()


def read_all(*paths, unit_bytes=None, **options):
    """(texts, notes) of files in their order."""
    notes = Notes()
    inputs = find_inputs([("text", path) for path in paths], notes, options.get("strict", False))
    return list(read_texts(inputs, Reading(**options), notes)), notes


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstd_frames}


@pytest.mark.parametrize("compression", PACK)
@pytest.mark.parametrize(
    ("suffix", "write"), [(".jsonl", as_jsonl), (".json", as_json), (".txt", as_txt), (".csv", as_csv)]
)
def test_every_format_and_compression_gives_the_same_texts(tmp_path, suffix, write, compression):
    """Reference: the texts that were written."""
    path = tmp_path / f"corpus{suffix}{compression}"
    path.write_bytes(PACK[compression](write(TEXTS)))
    assert read_all(path) == (TEXTS, Notes())


@pytest.mark.parametrize(
    ("suffix", "write"),
    [(".parquet", as_parquet), (".arrow", as_arrow), (".arrow", lambda texts: as_arrow(texts, "new_file"))],
    ids=["parquet", "arrow stream", "arrow file"],
)
def test_a_column_gives_its_texts_and_what_is_none_is_counted(tmp_path, suffix, write):
    """Reference: the texts that were written; a null, an oversized text and a missing column are named."""
    path = tmp_path / f"corpus{suffix}"
    path.write_bytes(write([*TEXTS, None, "y" * 5000]))
    texts, notes = read_all(path, max_document_bytes=4000)
    assert texts == TEXTS
    assert notes.dropped == {"field 'text' is not a string": 1, "larger than --max-document-bytes": 1}
    assert [example.line for example in notes.examples["larger than --max-document-bytes"]] == [6]
    assert read_all(path, max_document_bytes=4000, oversized="cut")[0] == [*TEXTS, "y" * 4000]
    texts, notes = read_all(path, text_field="body")
    assert (texts, notes.files) == ([], {"no text column": 1})
    units = list(read_units(find_inputs([("text", path)], Notes(), False), Reading(), 1))
    assert sum(unit.read for unit in units) == path.stat().st_size


@pytest.mark.parametrize(
    ("rule", "expected"), [("block", ["a\nb", "c"]), ("line", ["a", "b", "c"]), ("file", ["a\nb\n \n\nc"])]
)
def test_a_txt_file_is_documents_by_option(tmp_path, rule, expected):
    """Reference: written by hand; blank lines are none, and counted where a line is a document."""
    (tmp_path / "a.txt").write_bytes(b"a\nb\n \n\nc\n")
    texts, notes = read_all(tmp_path / "a.txt", txt_documents=rule)
    assert texts == expected
    assert notes.dropped.total() == (2 if rule == "line" else 0)


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 60))
def test_units_hold_every_line_once_in_order(tmp_path_factory, lines, unit_bytes):
    """Reference: bytes.split, at any size of a unit."""
    path = tmp_path_factory.mktemp("lines") / "corpus.jsonl"
    content = b"{" + b"\n".join(lines)
    path.write_bytes(content)
    expected = content.split(b"\n")
    expected = expected[:-1] if expected[-1] == b"" else expected  # a last line without its line feed is a line
    inputs = find_inputs([("text", path)], Notes(), False)
    units = [unit for unit in read_units(inputs, Reading(), unit_bytes) if unit.problem is None]
    if units:  # and not taken for a binary file
        found = [record for unit in units for record in unit.records]
        assert [record.content for record in found] == expected
        assert [record.line for record in found] == list(range(1, len(expected) + 1))
        assert sum(unit.read for unit in units) == len(content)


def test_every_kind_of_bad_record_is_counted(tmp_path):
    """Reference: the bad lines written, one or more of each kind; the examples say on which line."""
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
    texts, notes = read_all(path)
    assert texts == ["first", "abc\nd"]
    assert notes.dropped == {
        "blank line": 2,
        "not JSON": 2,
        "not UTF-8": 1,
        "not a JSON object": 1,
        "no field 'text'": 1,
        "field 'text' is not a string": 2,
        "empty after cleaning": 1,
    }
    assert notes.changed == {"byte-order mark": 1, "NUL": 2, "lone surrogates": 2, "control characters": 1}
    assert [(example.file, example.line) for example in notes.examples["not JSON"]] == [
        ("corpus.jsonl", n) for n in (4, 5)
    ]
    assert notes.examples["not UTF-8"][0].text == '{"text": "\\xff"}'


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jsonl", b'{"text": "x"}\n\n{', "line 3: not JSON"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', "line 2: not UTF-8"),
        ("a.jsonl", b'{"text": "x\\u0000"}', "line 1: NUL"),
        ("a.jsonl", b'\xef\xbb\xbf{"text": "x"}', "line 1: byte-order mark"),
        ("a.jsonl", b'{"text": "x"}\n{"txt": "x"}', "line 2: no field 'text'"),
        ("a.txt", b"x\n\ny\n\nz\x07", "line 5: control characters"),
        ("a.txt", b"x\n\n" + b"y" * 200, "line 3: larger than --max-document-bytes"),
        ("a.csv", b'text\nx\n"y\nz"\n"a" b', "line 5: not CSV"),
        ("a.txt", b"", "empty: no bytes"),
        ("a.txt", bytes(range(256)), "binary: "),
        ("a.jsonl.gz", gzip.compress(b'{"text": "x"}')[:-3], "damaged: "),
    ],
    ids=range(11),
)
def test_strict_makes_the_first_disorder_an_error_with_file_and_line(tmp_path, name, content, reason):
    """And without it each of them is counted and the rest is read."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_all(path, strict=True, max_document_bytes=100)
    assert str(path) in str(raised.value)
    assert reason in str(raised.value)
    _, notes = read_all(path, max_document_bytes=100)
    assert notes.dropped.total() + notes.changed.total() + notes.files.total() >= 1
    assert notes.examples


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
        ("no.parquet", b"this is no parquet"),
        ("no.arrow", b"this is no arrow"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_damaged_as_a_whole_is_named_and_the_next_one_is_read(tmp_path, name, content):
    """What can be read of it is; that the rest is missing is counted with the file's name."""
    (tmp_path / name).write_bytes(content)
    (tmp_path / "z.txt").write_text("next")
    texts, notes = read_all(tmp_path / name, tmp_path / "z.txt")
    assert texts[-1] == "next"
    assert texts[:-1] == TEXTS[: len(texts) - 1]
    assert [example.file for example in notes.examples["damaged"]] == [name]


def test_a_large_json_array_is_refused_with_the_way_out(tmp_path, monkeypatch):
    """Both plain, before the work, and compressed, while it is read."""
    monkeypatch.setattr("data_pipeline.formats.JSON_BYTES", 1000)
    (tmp_path / "a.json").write_bytes(as_json(TEXTS))
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(as_json(TEXTS)))
    for name in ("a.json", "a.json.gz"):
        with pytest.raises(UserError, match=r"name it \.jsonl"):
            read_all(tmp_path / name)


def test_inputs_that_cannot_be_read_are_refused_before_the_work(tmp_path):
    """A missing file, an unknown kind, a folder and a glob without inputs."""
    (tmp_path / "notes.docx").write_text("x")
    (tmp_path / "folder.txt").mkdir()
    for path, reason in (
        (tmp_path / "folder.txt", "no input file there"),
        (tmp_path / "*.jsonl", "no input file there"),
        (tmp_path / "none.txt", "no such file"),
        (tmp_path / "notes.docx", "not a kind of input"),
    ):
        with pytest.raises(UserError, match=reason):
            find_inputs([("text", path)], Notes(), False)


def test_folders_and_globs_give_their_files_sorted_and_count_the_rest(tmp_path):
    """Reference: the tree written; links are followed, a loop of links ends, a dangling one is counted."""
    (tmp_path / "in" / "b" / "deep").mkdir(parents=True)
    for name in ("c.txt", "b/x.jsonl", "b/deep/y.txt", "a.txt.gz", "LICENSE", ".hidden.txt"):
        (tmp_path / "in" / name).write_text("x")
    (tmp_path / "in" / "b" / "loop").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in" / "self.txt").symlink_to("self.txt")
    notes = Notes()
    found = find_inputs([("one", tmp_path / "in")], notes, False)
    assert [entry.name for entry in found] == ["a.txt.gz", "b/deep/y.txt", "b/x.jsonl", "c.txt"]
    assert notes.files == {"folder met twice": 1, "unreadable": 2, "unknown kind": 1, "hidden": 1}
    globbed = [
        ("two", tmp_path / "in" / "**" / "*.txt"),
        ("one", tmp_path / "in" / "c.txt"),
        ("two", tmp_path / "in/a*"),
    ]
    found = find_inputs(globbed, Notes(), False)
    assert [entry.source for entry in found] == ["two"] * (len(found) - 1) + ["one"]
    assert {"b/deep/y.txt", "c.txt"} <= {entry.name for entry in found}
    with pytest.raises(DataError, match="--strict"):
        find_inputs([("one", tmp_path / "in")], Notes(), True)


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
    numbers = [int.from_bytes(digest(text)[:8], "big") for text in texts]
    held_out = [number for number in numbers if number < validation_limit(fraction)]
    assert all(number < validation_limit((1 + fraction) / 2) for number in held_out)
    assert validation_limit(0.0) == 0


@pytest.mark.parametrize("fraction", [0.01, 0.3])
def test_the_share_of_texts_held_out_is_the_fraction(fraction):
    """Reference: the binomial distribution, 5 sigma."""
    numbers = [int.from_bytes(digest(str(number))[:8], "big") for number in range(20_000)]
    share = sum(number < validation_limit(fraction) for number in numbers) / len(numbers)
    assert abs(share - fraction) <= 5 * (fraction * (1 - fraction) / len(numbers)) ** 0.5


@pytest.mark.parametrize("rule", ["block", "line", "file"])
def test_hostile_files_never_crash(tmp_path, rule):
    """Every hostile file under every text format's name: whole, cut and compressed; nothing vanishes uncounted."""
    files = sorted(path for path in (DATA / "hostile").rglob("*") if path.is_file()) if DATA.is_dir() else []
    if not files:
        pytest.skip("needs ../shared/data/hostile")
    for number, path in enumerate(files):
        content = path.read_bytes()[:200_000]
        for suffix in (".txt", ".jsonl", ".json", ".csv", ".parquet", ".arrow"):
            (tmp_path / f"{number}{suffix}").write_bytes(content)
    texts, notes = read_all(tmp_path, txt_documents=rule, max_document_bytes=50_000)
    for text in texts:
        text.encode()
    assert len(texts) > len(files) / 2 or rule == "file"
    assert notes.files["damaged"] >= 2 * len(files)
    assert set(notes.examples) >= set(notes.dropped) | set(notes.changed) | set(notes.files)


@given(st.binary(max_size=200), st.sampled_from(FORMATS), st.sampled_from(["", ".gz", ".zst"]), st.integers(1, 300))
def test_no_bytes_crash_the_reader(tmp_path_factory, content, file_format, compression, limit):
    """Random bytes as every format, packed rightly: texts, or notes, or both."""
    compression = "" if file_format in (".parquet", ".arrow") else compression
    path = tmp_path_factory.mktemp("fuzz") / f"x{file_format}{compression}"
    path.write_bytes(PACK[compression](content))
    texts, notes = read_all(path, max_document_bytes=limit, oversized="cut")
    assert all(texts)
    if not content:
        assert notes.files


def test_a_huge_line_is_held_to_the_limit(tmp_path):
    """A line of 300 MB out of 30 KB of zstd: the peak of the memory stays far below it, and the next line is read."""
    import tracemalloc

    compressor = zstandard.ZstdCompressor(level=1).compressobj()
    with (tmp_path / "a.txt.zst").open("wb") as file:
        for _ in range(300):
            file.write(compressor.compress(b"x" * 1_000_000))
        file.write(compressor.compress(b"\nnext") + compressor.flush())
    for oversized, expected in (("drop", ["next"]), ("cut", ["x" * 1000, "next"])):
        tracemalloc.start()
        texts, notes = read_all(
            tmp_path / "a.txt.zst", txt_documents="line", max_document_bytes=1000, oversized=oversized
        )
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert texts == expected
        assert notes.dropped.total() + notes.changed.total() == 1
        assert peak < 100e6


def test_a_cut_falls_between_characters(tmp_path):
    """Reference: bytes.decode with errors ignored, at every limit."""
    content = "a深é🙂b".encode()
    (tmp_path / "a.txt").write_bytes(content)
    for limit in range(1, len(content)):
        expected = content[:limit].decode(errors="ignore")
        assert read_all(tmp_path / "a.txt", max_document_bytes=limit, oversized="cut")[0] == [expected]


@given(st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=30), st.integers(1, 60))
def test_stretches_hold_every_line_once_in_order(tmp_path_factory, lines, size):
    """Reference: the file read as a whole; wherever it is cut, a line belongs to the stretch in which it starts."""
    path = tmp_path_factory.mktemp("lines") / "corpus.jsonl"
    path.write_bytes(b"{" + b"\n".join(lines))
    [entry] = find_inputs([("text", path)], Notes(), False)
    whole = list(file_units(entry, Reading()))
    stretches = [Stretch(start, min(start + size, entry.size)) for start in range(0, entry.size, size)]
    parts = [list(file_units(entry, Reading(), stretch)) for stretch in stretches]
    records = [record.content for units in parts for unit in units for record in unit.records]
    assert records == [record.content for unit in whole for record in unit.records]
    assert sum(unit.read for units in parts for unit in units) == entry.size
    for stretch, units in zip(stretches, parts, strict=True):
        found = [record.line for unit in units for record in unit.records]
        assert found == list(range(1, len(found) + 1))
        assert {unit.start for unit in units} <= {stretch.start}
    assert [unit.problem for units in parts for unit in units if unit.problem] == [
        unit.problem for unit in whole if unit.problem
    ]


def test_strict_names_the_line_of_the_file_in_any_stretch(tmp_path):
    """Reference: the line that was broken, by hand; workers see their stretch only."""
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(b'{"text": "a"}\n' * 40 + b"{\n" + b'{"text": "a"}\n' * 40)
    [entry] = find_inputs([("text", path)], Notes(), False)
    with pytest.raises(DataError, match=r"corpus\.jsonl, line 41: not JSON"):
        for start in range(0, entry.size, 100):
            for unit in file_units(entry, Reading(strict=True), Stretch(start, start + 100)):
                clean_texts(unit)


def test_every_unwanted_character_is_seen():
    """Reference: one regular expression, on all characters of Unicode between others of one, two and three bytes."""
    unwanted = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
    for code in range(0x110000):
        assert has_unwanted(f"a{chr(code)}é中") == bool(unwanted.search(chr(code))), hex(code)
        assert bool(unwanted_kinds(chr(code))) == bool(unwanted.search(chr(code))), hex(code)
