"""The manifest: read back as written, and every damage of it one clear DataError."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import BlockEntry, ShardEntry, Split, load_manifest, load_token_counts, write_manifest

SPLIT = Split(
    documents=3,
    tokens=30,
    shards=(
        ShardEntry(
            "train-000000.tar", 9216, "aa", (BlockEntry(0, 4096, 10, 1, "bb"), BlockEntry(4096, 4096, 20, 2, "cc"))
        ),
    ),
)
SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}


def write(directory, **changes):
    fields = {
        "token_dtype": "uint16",
        "vocabulary_size": 100,
        "special_ids": SPECIAL_IDS,
        "tokenizer_checksum": "dd",
        "settings": {"source": "书"},
        "splits": {"train": SPLIT, "validation": Split(0, 0, ())},
        "token_counts_checksum": "ee",
    }
    return write_manifest(directory, **(fields | changes))


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    """Reference: the values given; sha256 of the file."""
    manifest = write(tmp_path)
    assert manifest == load_manifest(tmp_path)
    assert manifest.splits == {"train": SPLIT, "validation": Split(0, 0, ())}
    assert manifest.special_ids == SPECIAL_IDS
    assert manifest.settings == {"source": "书"}
    content = (tmp_path / "manifest.json").read_bytes()
    assert manifest.identity == hashlib.sha256(content).hexdigest()
    document = json.loads(content)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n"
    assert content == text.encode(), "not canonical"
    assert document["splits"]["train"]["shards"][0]["blocks"][1] == [4096, 4096, 20, 2, "cc"]
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]


def test_a_missing_folder_or_manifest_is_the_users_mistake(tmp_path):
    """One line that names the folder."""
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=str(directory)):
            load_manifest(directory)


@pytest.mark.parametrize(
    ("find", "replace", "reason"),
    [
        ('"documents":3', '"documents":4', "says 4 documents, its blocks have 3"),
        ('"tokens":30', '"tokens":31', "says 31 tokens, its blocks have 30"),
        ("[4096,4096", "[4000,4096", "overlaps"),
        ('"bytes":9216', '"bytes":8000', "blocks end at byte 8192"),
        ("train-000000.tar", "../train-000000.tar", "not a plain file name"),
        ('"version":1', '"version":2', "version 2"),
        ('"mask":4', '"mask":100', "mask is not below"),
        ('"mask":4', '"mask":true', "not a count"),
        ('"cls":2,', "", "no key 'cls'"),
        ('"uint16"', '"float16"', "token_dtype"),
        ("{", "", "damaged"),
    ],
)
def test_a_contradiction_in_the_manifest_is_named(tmp_path, find, replace, reason):
    """One damage at a time."""
    write(tmp_path)
    path = tmp_path / "manifest.json"
    content = path.read_text(encoding="utf-8")
    assert find in content
    path.write_text(content.replace(find, replace, 1), encoding="utf-8")
    with pytest.raises(DataError, match=reason):
        load_manifest(tmp_path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 500), byte=st.integers(0, 255))
def test_a_changed_byte_is_a_data_error_or_another_identity(tmp_path, position, byte):
    """Never another exception, never the same identity."""
    whole = write(tmp_path)
    path = tmp_path / "manifest.json"
    content = bytearray(path.read_bytes())
    if content[position % len(content)] == byte:
        return
    content[position % len(content)] = byte
    path.write_bytes(bytes(content))
    try:
        assert load_manifest(tmp_path).identity != whole.identity
    except DataError as error:
        assert "\n" not in str(error)


def test_token_counts_are_verified(build_set, texts):
    """Reference: the counts of the file; then one byte of it changed, then cut, then gone."""
    manifest = load_manifest(build_set(texts[:50]))
    counts = load_token_counts(manifest)
    assert counts.dtype == np.int64
    assert counts.shape == (manifest.vocabulary_size,)
    assert counts.sum() == manifest.splits["train"].tokens
    path = manifest.directory / "token-counts.npy"
    content = path.read_bytes()
    for damaged in (content[:-1] + b"\1", content[:40]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="checksum"):
            load_token_counts(manifest)
    path.unlink()
    with pytest.raises(DataError, match="cannot read"):
        load_token_counts(manifest)
