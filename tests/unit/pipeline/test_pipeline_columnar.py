"""Columns of .parquet and .arrow files: the texts that were written, within memory."""

import io
import random
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline import columnar, parquet_values
from data_pipeline.arrow_batches import Batch, Buffer, batch_values
from data_pipeline.errors import DataError
from data_pipeline.formats import records
from data_pipeline.inputs import Input
from data_pipeline.parquet_pages import DATA, DELTA_BYTE_ARRAY, DICTIONARY, PLAIN, Page, read_pages
from data_pipeline.record import OVERSIZED, UNOPENED, FileProblemError, Value
from data_pipeline.sources import Reading, read_units
from data_pipeline.texts import clean_texts

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
LIMIT = 1 << 20
CODECS = ["none", "snappy", "gzip", "zstd", "brotli", "lz4"]
PLAIN_TYPES = ["string", "large_string", "binary", "large_binary", "string_view", "binary_view"]


def some_texts(count, seed=0, nulls=True):
    """Texts of 0 to 400 bytes, a third of them met before, some null."""
    rng = random.Random(seed)
    texts = []
    for number in range(count):
        text = f"{number} " + "中文 and English. " * rng.choice((0, 1, 3, 20))
        texts.append(rng.choice([text, text[: rng.randrange(3)], *texts[-1:]]))
    return [None if nulls and rng.random() < 0.1 else text for text in texts]


def read(path, limit=LIMIT):
    """Each row: its text, or why there is none."""
    with path.open("rb") as file:
        found = list(records(path, file, "text", "block", limit))
    assert [record.line for record in found] == list(range(1, len(found) + 1))
    assert [record.position for record in found] == sorted(record.position for record in found)
    return [record.reason or record.content.decode() for record in found]


def expected(texts):
    return ["field 'text' is not a string" if text is None else text for text in texts]


def write_parquet(path, texts, nullable=True, **options):
    """Pages of a few hundred bytes, three row groups."""
    schema = pyarrow.schema([("id", pyarrow.int64()), pyarrow.field("text", pyarrow.string(), nullable)])
    table = pyarrow.table({"id": range(len(texts)), "text": texts}, schema=schema)
    small = {"data_page_size": 500, "write_batch_size": 7, "row_group_size": len(texts) // 3 + 1}
    parquet.write_table(table, path, **(small | options))
    return path


def write_arrow(path, table, batch_rows=100, stream=True, codec=None):
    options = pyarrow.ipc.IpcWriteOptions(compression=codec)
    opened = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with opened(str(path), table.schema, options=options) as writer:
        writer.write_table(table, batch_rows)
    return path


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("options", [{"use_dictionary": False}, {}, {"dictionary_pagesize_limit": 2000}])
@pytest.mark.parametrize("nullable", [True, False])
def test_large_parquet_pages_hold_what_was_written(codec, version, options, nullable, tmp_path, monkeypatch):
    """Reference: the list that pyarrow wrote. All pages count as large, so none is read by pyarrow."""
    monkeypatch.setattr(columnar, "PAGE_BYTES", 0)
    monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", None)
    texts = some_texts(700, nulls=nullable)
    path = write_parquet(
        tmp_path / "a.parquet", texts, nullable, compression=codec, data_page_version=version, **options
    )
    assert read(path) == expected(texts)


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_other_encodings_are_left_to_pyarrow_up_to_a_size(encoding, tmp_path, monkeypatch):
    """Reference: the list that pyarrow wrote; above the size the rows of the row group are counted, the others read."""
    texts = ["small"] * 300 + [f"{number} " + "large" * 1000 for number in range(300)] + ["small"] * 300
    options = {"use_dictionary": False, "column_encoding": {"text": encoding}, "row_group_size": 300}
    path = write_parquet(tmp_path / "a.parquet", texts, data_page_size=10_000, **options)
    assert read(path) == texts
    monkeypatch.setattr(columnar, "PAGE_BYTES", 9_000)
    assert read(path) == texts[:300] + [UNOPENED] * 300 + texts[600:]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("large", [0, 1 << 30])
def test_a_large_parquet_value_is_cut_and_its_neighbours_are_read(codec, large, tmp_path, monkeypatch):
    """Reference: the list that was written; by both readers, in a page with others."""
    monkeypatch.setattr(columnar, "PAGE_BYTES", large)
    texts = ["before", "x" * 5000, None, "after"]
    path = write_parquet(tmp_path / "a.parquet", texts, compression=codec, write_batch_size=1024)
    assert read(path, 1000) == expected(["before", OVERSIZED, None, "after"])
    with path.open("rb") as file:
        assert list(records(path, file, "text", "block", 1000))[1].content == b"x" * 1000


@pytest.mark.parametrize("options", [{"use_dictionary": False}, {}])
def test_a_page_too_large_to_be_opened_is_counted_and_what_is_beside_it_read(options, tmp_path, monkeypatch):
    """Reference: the row groups as they were written. Streams have no such limit, so zstd is read."""
    texts = ["small"] * 100 + ["large" * 1000 + str(number) for number in range(100)] + ["small"] * 100
    monkeypatch.setattr(columnar, "PAGE_BYTES", 1000)
    monkeypatch.setattr(parquet_values, "WHOLE_BYTES", 100_000)
    options = options | {"row_group_size": 100, "write_batch_size": 1024}
    path = write_parquet(tmp_path / "a.parquet", texts, compression="snappy", **options)
    assert read(path) == texts[:100] + [UNOPENED] * 100 + texts[200:]
    path = write_parquet(tmp_path / "b.parquet", texts, compression="zstd", **options)
    assert read(path) == texts


def test_rows_that_are_not_opened_stand_in_the_report_or_end_a_strict_build(tmp_path, monkeypatch):
    """Reference: written by hand."""
    monkeypatch.setattr(columnar, "PAGE_BYTES", 0)
    monkeypatch.setattr(parquet_values, "WHOLE_BYTES", 0)
    path = write_parquet(tmp_path / "a.parquet", ["one", "two"], compression="snappy")
    entry = Input(path, path.name, "text", path.stat().st_size)
    _, notes = clean_texts(next(read_units([entry], Reading(oversized="cut"))))
    assert notes.dropped == {UNOPENED: 2}
    assert [example.line for example in notes.examples[UNOPENED]] == [1, 2]
    with pytest.raises(DataError, match=r"a\.parquet, line 1: in a page too large to be opened \(--strict\)"):
        clean_texts(next(read_units([entry], Reading(strict=True))))


def test_the_headers_of_pages_tell_their_sizes(tmp_path):
    """Reference: pyarrow's sums for the column chunk, and the size of what was written."""
    texts = some_texts(500, nulls=False)
    path = write_parquet(tmp_path / "a.parquet", texts, use_dictionary=False, compression="none", row_group_size=1000)
    chunk = parquet.ParquetFile(path).metadata.row_group(0).column(1)
    with path.open("rb") as file:
        pages = list(read_pages(file, chunk.data_page_offset, chunk.num_values))
        assert sum(page.values for page in pages) == 500
        assert len(pages) > 10
        assert all(page.encoding == PLAIN and page.kind == DATA and page.stored == page.size for page in pages)
        assert sum(page.size for page in pages) >= sum(4 + len(text.encode()) for text in texts)
        assert pages[-1].start + pages[-1].stored == chunk.data_page_offset + chunk.total_compressed_size


@pytest.mark.parametrize("seed", range(20))
def test_rows_at_a_time_are_as_many_as_fit(seed, monkeypatch):
    """Reference: every window of rows, page by page."""
    rng = random.Random(seed)
    monkeypatch.setattr(columnar, "BATCH_BYTES", 1000)
    pages = [Page(DATA, 0, 0, rng.choice((50, 300, 900)), rng.choice((1, 5, 100)), PLAIN) for _ in range(30)]
    pages += [Page(DICTIONARY, 0, 0, rng.choice((2, 20, 400)), 1, PLAIN)] * rng.randrange(2)
    rows = columnar._batch_rows(pages)
    page_of_row = [number for number, page in enumerate(pages) for _ in range(page.values if page.is_data else 0)]
    windows = (set(page_of_row[start : start + rows]) for start in range(len(page_of_row)))
    assert rows == 1 or max(sum(pages[number].size for number in window) for window in windows) <= 1000
    assert rows == 1 or rows * max([page.size for page in pages if not page.is_data], default=0) <= 1000
    assert columnar._batch_rows([Page(DATA, 0, 0, 100, 1000, PLAIN)] * 5) == 256
    for large in (Page(DICTIONARY, 0, 0, 400, 1, PLAIN), Page(DATA, 0, 0, 400, 1000, DELTA_BYTE_ARRAY)):
        assert columnar._batch_rows([large, Page(DATA, 0, 0, 1, 1000, PLAIN)]) == 2


@pytest.mark.parametrize("kind", [*PLAIN_TYPES, "dictionary"])
@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [True, False])
def test_arrow_batches_hold_what_was_written(kind, codec, stream, tmp_path):
    """Reference: the list that was written, behind columns of other types, empty batches and slices among others."""
    texts = some_texts(5000)
    column = pyarrow.array(texts)
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    lists = pyarrow.array([[text or "", "x"] for text in texts])
    before = {
        "list": lists,
        "struct": pyarrow.array([{"text": number, "view": None} for number in range(len(texts))]),
        "map": pyarrow.array([[("a", 1)]] * len(texts), pyarrow.map_(pyarrow.string(), pyarrow.int8())),
        "fixed": pyarrow.array([[1, 2]] * len(texts), pyarrow.list_(pyarrow.int8(), 2)),
        "null": pyarrow.nulls(len(texts)),
        "bool": pyarrow.array([True] * len(texts)),
        "other": column,
    }
    if kind.endswith("view"):
        del before["other"]
    table = pyarrow.table(before | {"text": column, "after": lists})
    path = write_arrow(tmp_path / "a.arrow", table.slice(3), 4500, stream, codec)
    assert read(path) == expected(texts[3:])
    path = write_arrow(tmp_path / "empty.arrow", table.slice(0, 0), 100, stream, codec)
    assert read(path) == []


@pytest.mark.parametrize("codec", ["", "lz4"])
def test_buffers_as_other_writers_make_them(codec):
    """Reference: Arrow's format. Offsets need not start at 0; some buffers do not become smaller."""
    prefix = b"\xff" * 8 if codec else b""
    offsets, texts = prefix + struct.pack("<3i", 3, 5, 9), prefix + b"???abcdef"
    file = io.BytesIO(b"?" + offsets + texts)
    buffers = [Buffer(0, 0), Buffer(1, len(offsets)), Buffer(1 + len(offsets), len(texts))]
    found = list(batch_values(file, Batch(2, buffers, codec), 0, pyarrow.string(), 3))
    assert found == [Value(b"ab"), Value(b"cde", OVERSIZED)]


@pytest.mark.parametrize("kind", [*PLAIN_TYPES, "dictionary"])
@pytest.mark.parametrize("codec", [None, "lz4"])
def test_a_large_arrow_value_is_cut_and_its_neighbours_are_read(kind, codec, tmp_path):
    """Reference: the list that was written."""
    column = pyarrow.array(["before", "x" * 5000, None, "y" * 9, "after"])
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(getattr(pyarrow, kind)())
    path = write_arrow(tmp_path / "a.arrow", pyarrow.table({"text": column}), codec=codec)
    assert read(path, 8) == expected(["before", OVERSIZED, None, OVERSIZED, "after"])
    with path.open("rb") as file:
        found = list(records(path, file, "text", "block", 8))
    assert (found[1].content, found[3].content) == (b"x" * 8, b"y" * 8)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("codec", [None, "zstd"])
def test_a_batch_that_pyarrow_cannot_open_within_memory_is_refused(stream, codec, tmp_path, monkeypatch):
    """Reference: written by hand; a dictionary of 600 kB."""
    column = pyarrow.array([f"{number} " * 100 for number in range(1000)]).dictionary_encode()
    path = write_arrow(tmp_path / "a.arrow", pyarrow.table({"text": column}), stream=stream, codec=codec)
    monkeypatch.setattr(columnar, "WHOLE_BATCH_BYTES", 700_000)
    assert len(read(path)) == 1000
    monkeypatch.setattr(columnar, "WHOLE_BATCH_BYTES", 300_000)
    with pytest.raises(FileProblemError, match=r"too large.*dictionary"):
        read(path)


@pytest.mark.parametrize("name", ["plain.parquet", "dictionary.parquet", "stream.arrow", "file.arrow", "packed.arrow"])
def test_damage_is_named_and_what_comes_before_it_is_read(name, tmp_path, monkeypatch):
    """Reference: the whole file. Cut anywhere it gives a prefix; with any byte changed it ends, and never in a bug."""
    monkeypatch.setattr(columnar, "PAGE_BYTES", 0)
    texts, path, rng = some_texts(120), tmp_path / name, random.Random(0)
    if name.endswith("parquet"):
        write_parquet(path, texts, use_dictionary=name.startswith("dictionary"), compression=rng.choice(CODECS))
    else:
        codec = "zstd" if name.startswith("packed") else None
        write_arrow(path, pyarrow.table({"text": texts}), 30, not name.startswith("file"), codec)
    content, whole = path.read_bytes(), expected(texts)
    for _ in range(100):
        place = rng.randrange(len(content))
        path.write_bytes(content[:place])
        found, problem = read_to_damage(path)
        assert found == whole[: len(found)]
        assert problem == "damaged" or name in ("stream.arrow", "packed.arrow")  # these may end between batches
        path.write_bytes(content[:place] + bytes([rng.randrange(256)]) + content[place + 1 :])
        read_to_damage(path)


def read_to_damage(path):
    found, problem = [], ""
    with path.open("rb") as file:
        try:
            for record in records(path, file, "text", "block", LIMIT):
                found.append(record.reason or record.content.decode(errors="replace"))
        except FileProblemError as error:
            problem = error.kind
    return found, problem


@pytest.mark.slow
@pytest.mark.parametrize("megabytes", [400, 1000])
@pytest.mark.parametrize("name", ["snappy.parquet", "zstd.parquet", "none.parquet", "plain.arrow", "lz4.arrow"])
def test_a_huge_value_takes_less_than_a_gibibyte(name, megabytes, tmp_path):
    """Reference: the peak of the process that reads it, as the kernel counts it; its neighbours are read or counted."""
    text = " ".join(f"word{number}" for number in range(1 << 20))
    texts = ["before", (text * (megabytes * 1_000_000 // len(text) + 1))[: megabytes * 1_000_000], "after"]
    check_peak(
        tmp_path / name, texts, {OVERSIZED: 1} if name != "snappy.parquet" or megabytes == 400 else {UNOPENED: 3}
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["snappy.parquet", "zstd.parquet", "dictionary.parquet", "plain.arrow", "lz4.arrow"])
def test_many_large_values_are_read_in_less_than_a_gibibyte(name, tmp_path):
    """Reference: the peak of the process that reads them; 1,000 values of 300 kB in a page."""
    check_peak(tmp_path / name, [f"{number:06d} " * 43_000 for number in range(1000)], {})


def check_peak(path, texts, reasons):
    """Write the texts; read them in another process."""
    table = pyarrow.table({"text": pyarrow.array(texts, pyarrow.large_string())})
    codec = path.stem
    if path.suffix == ".parquet":
        plain = codec != "dictionary"
        parquet.write_table(table, path, use_dictionary=not plain, compression=codec if plain else "snappy")
    else:
        write_arrow(path, table, codec="lz4" if codec == "lz4" else None)
    code = (
        "import collections, pathlib, re, sys; from data_pipeline.formats import records;"
        "path = pathlib.Path(sys.argv[1]);"
        "found = collections.Counter(r.reason for r in records(path, path.open('rb'), 'text', 'block', 8 << 20));"
        "print(re.search(r'VmHWM:\\s+(\\d+)', pathlib.Path('/proc/self/status').read_text())[1], dict(found))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=True, capture_output=True, text=True, cwd=ROOT)
    kilobytes, _, found = done.stdout.partition(" ")
    assert int(kilobytes) < 850 << 10  # a worker has some 150 MiB of its own
    kept = len(texts) - sum(reasons.values())
    assert found.strip() == str(({"": kept} if kept else {}) | reasons)
