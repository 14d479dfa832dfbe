"""Small data sets written by the real shard writer, and a slow reader of them that shares no code with train/data."""

import io
import json
import logging
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.manifest import Manifest, Split, load_manifest, write_manifest
from data_pipeline.shards import ShardWriter, encode_block

SPECIAL_IDS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
VOCABULARY = 60_000

StoredDocument = tuple[tuple[int, ...], tuple[bool, ...]]  # its ids, and for each whether it starts a word


def _block(number: int, lengths: Sequence[int], dtype: str, rng: np.random.Generator) -> bytes:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.uint32)
    ids = rng.integers(5, VOCABULARY, size=offsets[-1]).astype(dtype)
    starts = rng.random(offsets[-1]) < 0.6
    return encode_block(number, ids, offsets, starts, "test")


def _split(
    folder: Path, name: str, shards: Sequence[Sequence[Sequence[int]]], dtype: str, rng: np.random.Generator
) -> Split:
    entries, number = [], 0
    for shard_number, blocks in enumerate(shards):
        with ShardWriter(folder / f"{name}-{shard_number:06d}.tar") as writer:
            for lengths in blocks:
                writer.write(_block(number, lengths, dtype, rng), sum(lengths), len(lengths))
                number += 1
            entries.append(writer.finish())
    every_length = [length for blocks in shards for lengths in blocks for length in lengths]
    return Split(len(every_length), sum(every_length), tuple(entries))


@pytest.fixture
def make_data_set(tmp_path: Path) -> Callable[..., Manifest]:
    """Write a data set from document lengths nested by shard and block; the ids and word starts are random."""

    def make(
        train: Sequence[Sequence[Sequence[int]]],
        validation: Sequence[Sequence[Sequence[int]]] = (),
        dtype: str = "uint16",
        seed: int = 0,
    ) -> Manifest:
        folder = tmp_path / f"data-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        rng = np.random.default_rng(seed)
        splits = {
            "train": _split(folder, "train", train, dtype, rng),
            "validation": _split(folder, "validation", validation, dtype, rng),
        }
        return write_manifest(
            folder,
            token_dtype=dtype,
            vocabulary_size=VOCABULARY,
            special_ids=SPECIAL_IDS,
            tokenizer_checksum="",
            settings={},
            splits=splits,
            token_counts_checksum="",
        )

    return make


@pytest.fixture
def data_set(make_data_set: Callable[..., Manifest]) -> Manifest:
    """Two shards of documents from 1 to 150 tokens, and a validation split of one shard."""
    rng = np.random.default_rng(7)
    train = [[rng.integers(1, 150, size=count).tolist() for count in shard] for shard in [(9, 30, 1), (17, 25)]]
    return make_data_set(train, [[rng.integers(1, 150, size=20).tolist(), [3, 400, 5]]])


@pytest.fixture
def stored_documents() -> Callable[[Manifest, str], list[list[StoredDocument]]]:
    """The documents of each block as the plain tarfile module finds them, token by token."""

    def read(manifest: Manifest, split: str) -> list[list[StoredDocument]]:
        members: dict[str, bytes] = {}
        for path in sorted(manifest.directory.glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                members |= {info.name: tar.extractfile(info).read() for info in tar}
        keys = sorted(name.removesuffix(".json") for name in members if name.endswith(".json"))
        return [_documents(members, key) for key in keys]

    return read


def _documents(members: dict[str, bytes], key: str) -> list[StoredDocument]:
    ids, offsets, words = (np.load(io.BytesIO(members[f"{key}.{part}.npy"])) for part in ("ids", "offsets", "words"))
    starts = [bool(words[token // 8] >> (token % 8) & 1) for token in range(len(ids))]
    assert json.loads(members[f"{key}.json"])["tokens"] == len(ids)
    return [
        (tuple(ids[begin:end].tolist()), tuple(starts[begin:end]))
        for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    ]


@pytest.fixture
def messages(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the log was told so far."""
    logger = logging.getLogger("bertmae")
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records]
    logger.removeHandler(caplog.handler)
    logger.propagate = propagate


@pytest.fixture(scope="session")
def real_data_set(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Real English and Chinese documents, built by the real command."""
    root = Path(__file__).resolve().parents[3]
    shared = root.parent / "shared" / "data"
    inputs = [shared / "pretrain" / name / "docs.jsonl.zst" for name in ("en-peps", "zh-react-docs", "zh-tidb-docs")]
    if not all(path.exists() for path in inputs):
        pytest.skip(f"the real documents are not in {shared}")
    output = tmp_path_factory.mktemp("real") / "shards"
    words = ["--tokenizer", shared / "vocab" / "bert-base-chinese", "--output", output, "--workers", "2"]
    command = [sys.executable, "-m", "data_pipeline", "build", "--input", *inputs, *words]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return load_manifest(output)
