"""Rows of every kind of file, and what is said of those that cannot be read."""

import csv
import gzip
import hashlib
import json

import datasets
import pyarrow
import pytest
import zstandard
from pyarrow import ipc, parquet

from train.errors import DataError, UserError
from train.finetune.rows import identity, read_rows, usable

ROWS = [
    {"text": 'He said "no",\nand left', "label": "a"},
    {"text": "他说“不”", "label": "b"},
    {"text": "\u2028 odd \x85 line ends", "label": "a"},
]


def write(folder, kind):
    path = folder / f"rows{kind}"
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    table = pyarrow.Table.from_pylist(ROWS)
    if kind == ".jsonl":
        path.write_text("\ufeff" + lines.replace("\n", "\r\n"), newline="")
    elif kind == ".jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == ".jsonl.zst":
        path.write_bytes(zstandard.compress(lines.encode()[:40]) + zstandard.compress(lines.encode()[40:]))
    elif kind == ".json":
        path.write_text(json.dumps(ROWS))
    elif kind == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows(ROWS)
    elif kind == ".parquet":
        parquet.write_table(table, path)
    else:
        with ipc.new_file(path, table.schema) as writer:
            writer.write(table)
    return path


@pytest.mark.parametrize("kind", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".csv", ".parquet", ".arrow"])
def test_every_kind_of_file_gives_the_same_rows(kind, tmp_path):
    """Reference: the rows that were written, by the writers of the formats' own libraries."""
    path = write(tmp_path, kind)
    assert [row.fields for row in read_rows(str(path))] == ROWS
    assert identity(str(path), 3)["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_place_of_a_csv_row_is_its_first_line(tmp_path):
    """Reference: the lines of the file, where the first row has a line feed of its own."""
    path = write(tmp_path, ".csv")
    lines = path.read_bytes().split(b"\n")
    places = [int(row.place.rsplit(":", 1)[1]) for row in read_rows(str(path))]
    assert places == [2, 4, 5] and lines[3].decode().startswith("他说")


def test_a_data_set_of_the_library_gives_its_labels_by_name(tmp_path):
    """Reference: what was saved; -1, which GLUE writes for unknown, has no name."""
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    source = f"datasets:{tmp_path / 'saved'}#train"
    found = read_rows(source)
    assert [row.fields["label"] for row in found] == ["yes", "no", None]
    assert found[1].place == f"{source}: row 2" and identity(source, 3)["fingerprint"]


MISTAKES = [
    ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "rows.jsonl:2: not JSON"),
    ("rows.jsonl", b'{"text": "a"}\n\n["a"]\n', "rows.jsonl:3: not a JSON object"),
    ("rows.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "rows.jsonl:2: not UTF-8"),
    ("rows.jsonl", b"\n", "rows.jsonl: no rows"),
    ("rows.json", b'[{"text": "a"}, 3]', "rows.json: element 2: not a JSON object"),
    ("rows.csv", b"text,label\na,b\nc\n", "rows.csv:3: 1 values for 2 columns"),
    ("rows.csv", b'text,label\na,b\n"c,d\n', "rows.csv:3: not CSV"),
    ("rows.csv", b"text,text\na,b\n", "rows.csv:1: two columns have one name"),
    ("rows.parquet", b"PAR1 no", "rows.parquet: damaged"),
    ("rows.jsonl.gz", gzip.compress(b"{}" * 99, mtime=0)[:-9], "rows.jsonl.gz: damaged"),
]


@pytest.mark.parametrize(("name", "content", "said"), MISTAKES)
def test_a_damaged_file_is_one_line_with_its_place(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as error:
        read_rows(str(tmp_path / name))
    assert said in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_known_is_one_line(tmp_path):
    (tmp_path / "rows.xls").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    for name, said in (("no.jsonl", "cannot be read"), ("rows.xls", "not a kind"), ("folder.jsonl", "cannot be read")):
        with pytest.raises(UserError, match=said):
            read_rows(str(tmp_path / name))


def test_bad_rows_end_it_or_are_counted(tmp_path):
    rows = read_rows(str(write(tmp_path, ".jsonl")))

    def check(row):
        if row.fields["label"] == "b":
            raise DataError(f"{row.place}: bad")
        return row.fields["label"]

    left_out = {}
    with pytest.raises(DataError, match=r"rows\.jsonl:2: bad"):
        usable(rows, check, repair=False, left_out=left_out, split="train")
    found = usable(rows, check, repair=True, left_out=left_out, split="train")
    assert [value for _, value in found] == ["a", "a"] and left_out == {"train": 1}
    with pytest.raises(DataError, match="no row"):
        usable(rows[1:2], check, repair=True, left_out=left_out, split="train")
