"""Inputs through `datasets`: local folders of every kind, each row once, and one clear line for what is not there."""

import json
import os

import pytest

from data_pipeline import hub
from data_pipeline.errors import DataError, UserError
from data_pipeline.record import OVERSIZED, FileProblemError

datasets = pytest.importorskip("datasets")
TEXTS = [f"text {number} 中文 🙂" for number in range(1000)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No trace in the user's cache, no progress bars, no memory of the test before."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    hub._opened.cache_clear()


def jsonl(folder, parts=3, texts=TEXTS, name="part"):
    folder.mkdir(exist_ok=True)
    size = -(-len(texts) // parts)
    for part in range(parts):
        lines = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts[part * size : (part + 1) * size])]
        (folder / f"{name}-{part}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def parquet(folder):
    folder.mkdir()
    for part in range(4):
        rows = TEXTS[part * 250 : (part + 1) * 250]
        datasets.Dataset.from_dict({"id": list(range(250)), "text": rows}).to_parquet(folder / f"{part}.parquet")
    return folder


def csv(folder):
    folder.mkdir()
    datasets.Dataset.from_dict({"id": list(range(1000)), "text": TEXTS}).to_csv(folder / "all.csv", index=False)
    return folder


def saved(folder):
    datasets.Dataset.from_dict({"id": list(range(1000)), "text": TEXTS}).save_to_disk(folder, num_shards=5)
    return folder


def saved_splits(folder):
    part = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"train": part, "test": part.select(range(3))}).save_to_disk(folder)
    return folder


def one_file(folder):
    return jsonl(folder, parts=1) / "part-0.jsonl"


def contents(spec, text_field="text", limit=1 << 20):
    dataset = hub.parse(str(spec))
    shards, _ = hub.describe(dataset)
    return [record for shard in range(shards) for record in hub.records(dataset, shard, shards, text_field, limit)]


@pytest.mark.parametrize(
    ("make", "shards"), [(jsonl, 3), (parquet, 4), (csv, 1), (saved, 5), (saved_splits, 1), (one_file, 1)]
)
def test_each_row_stands_in_one_shard(tmp_path, make, shards):
    """Reference: the texts that were written, in their order; rows of a shard count from 1."""
    dataset = hub.parse(f"datasets:{make(tmp_path / 'data')}")
    assert hub.describe(dataset)[0] == shards
    for parts in {1, min(2, shards), shards}:
        found = [list(hub.records(dataset, shard, parts, "text", 1 << 20)) for shard in range(parts)]
        assert [record.content.decode() for part in found for record in part] == TEXTS
        assert [record.line for part in found for record in part] == [n + 1 for part in found for n in range(len(part))]
        assert all(part for part in found)


def test_splits_and_configurations_are_told_apart(tmp_path):
    """Reference: the texts that were written for each."""
    jsonl(tmp_path / "data", texts=TEXTS[:5], parts=1, name="en")
    jsonl(tmp_path / "data", texts=TEXTS[5:12], parts=1, name="zh")
    (tmp_path / "data" / "README.md").write_text(
        "---\nconfigs:\n- config_name: english\n  data_files:\n  - split: train\n    path: en-*.jsonl\n"
        "- config_name: chinese\n  data_files:\n  - split: dev\n    path: zh-*.jsonl\n---\n"
    )
    assert len(contents(f"datasets:{tmp_path / 'data'}@english")) == 5
    assert len(contents(f"datasets:{tmp_path / 'data'}@chinese#dev")) == 7
    assert len(contents(f"datasets:{saved_splits(tmp_path / 'saved')}#test")) == 3
    for spec, text in (
        (f"{tmp_path / 'data'}@chinese", "no split 'train'; there are dev"),
        (f"{tmp_path / 'data'}@german", "german.*english"),
        (f"{tmp_path / 'saved'}#dev", "no split 'dev'; there are train, test"),
        (f"{saved(tmp_path / 'single')}#test", "leave #test away"),
    ):
        with pytest.raises(UserError, match=text) as caught:
            contents(f"datasets:{spec}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("make", [jsonl, parquet, saved])
def test_the_identity_changes_with_the_data_alone(tmp_path, make):
    """Reference: two looks at the same; a later time or another content of one file."""
    dataset = hub.parse(f"datasets:{make(tmp_path / 'data')}")
    before = hub.describe(dataset)
    assert hub.describe(dataset) == before
    file = sorted(path for path in (tmp_path / "data").iterdir() if path.suffix in (".jsonl", ".parquet", ".arrow"))[0]
    os.utime(file, (1e9, 1e9))
    touched = hub.describe(dataset)
    assert touched[0] == before[0]
    assert touched[1] != before[1]


def test_rows_that_are_no_text_say_so(tmp_path):
    """Reference: the reasons of the readers of .parquet and .arrow."""
    folder = tmp_path / "data"
    folder.mkdir()
    rows = {"text": ["a", None, "中" * 50], "number": [1, 2, 3]}
    datasets.Dataset.from_dict(rows).to_parquet(folder / "a.parquet")
    spec = f"datasets:{folder}"
    assert [record.reason for record in contents(spec, limit=100)] == ["", "field 'text' is not a string", OVERSIZED]
    assert contents(spec, limit=100)[2].content == ("中" * 50).encode()[:100]
    for name, text in (("body", "no column 'body', but text, number"), ("number", "holds int64, not text")):
        with pytest.raises(FileProblemError, match=text) as caught:
            contents(spec, text_field=name)
        assert caught.value.kind == "no text column"


def test_a_damaged_file_is_a_problem_of_its_shard_alone(tmp_path):
    """Reference: the texts of the file after it."""
    folder = jsonl(tmp_path / "data")
    (folder / "part-1.jsonl").write_bytes(b'{"text": "x"}\n{"text": \xff\x00')
    dataset = hub.parse(f"datasets:{folder}")
    with pytest.raises(FileProblemError) as caught:
        list(hub.records(dataset, 1, 3, "text", 100))
    assert caught.value.kind == "damaged"
    assert [record.content.decode() for record in hub.records(dataset, 2, 3, "text", 100)] == TEXTS[668:]


def test_a_data_set_with_fewer_shards_than_it_had_is_refused(tmp_path):
    """Else rows would be read twice or not at all."""
    with pytest.raises(DataError, match="3 shards now, not 4"):
        next(hub.records(hub.parse(f"datasets:{jsonl(tmp_path / 'data')}"), 0, 4, "text", 100))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("data/a.jsonl", None),
        ("datasets:ag_news", hub.Dataset("ag_news")),
        ("datasets:a/b@20231101.en#validation", hub.Dataset("a/b", "20231101.en", "validation")),
        ("datasets:/x/a@b/c#dev", hub.Dataset("/x/a@b/c", None, "dev")),
    ],
)
def test_names_are_read(spec, expected):
    """Reference: written by hand."""
    assert hub.parse(spec) == expected


@pytest.mark.parametrize(
    "spec", ["datasets:", "datasets:@c", "datasets:x@", "datasets:x#", "datasets:x#a#b", "datasets:#a"]
)
def test_malformed_names_are_refused(spec):
    """The line says how they are written."""
    with pytest.raises(UserError, match="NAME"):
        hub.parse(spec)


def test_what_is_not_there_is_one_line_at_once(monkeypatch, tmp_path):
    """No retries: a missing folder, an offline hub, a server that refuses connections, a folder without data."""
    import huggingface_hub

    with pytest.raises(UserError, match="no such file or folder: /no/such"):
        hub.describe(hub.Dataset("/no/such"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        hub.describe(hub.Dataset(str(tmp_path / "empty")))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        hub.describe(hub.Dataset("nobody/nothing"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached") as caught:
        hub.describe(hub.Dataset("nobody/nothing"))
    assert "\n" not in str(caught.value)
