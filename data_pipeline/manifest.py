"""The manifest of a data set: its shards and blocks with sizes, counts, checksums; its hash is the identity."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, UserError

FORMAT = "bertmae-shards"
VERSION = 1
MANIFEST_NAME = "manifest.json"
TOKENIZER_FOLDER = "tokenizer"
TOKEN_COUNTS_NAME = "token-counts.npy"  # noqa: S105 (a token of text, no secret)
SPECIALS = ("pad", "unk", "cls", "sep", "mask")
TOKEN_DTYPES = ("uint16", "uint32")


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block: bytes [offset, offset + bytes) of its shard, headers and padding included."""

    offset: int
    bytes: int
    tokens: int
    documents: int
    checksum: str  # xxh3_64 of those bytes, hex


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """One tar file with its blocks in the order of the file."""

    name: str
    bytes: int
    checksum: str  # xxh3_128 of the file, hex
    blocks: tuple[BlockEntry, ...]


@dataclass(frozen=True, slots=True)
class Split:
    """A part of the data set ("train", "validation") with its totals."""

    documents: int
    tokens: int
    shards: tuple[ShardEntry, ...]

    @classmethod
    def of(cls, shards: Iterable[ShardEntry]) -> "Split":
        """The split of these shards."""
        entries = tuple(shards)
        blocks = [block for shard in entries for block in shard.blocks]
        return cls(sum(block.documents for block in blocks), sum(block.tokens for block in blocks), entries)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A data set as its manifest.json describes it; `identity` is the sha256 (hex) of that file."""

    directory: Path
    identity: str
    token_dtype: str
    vocabulary_size: int
    special_ids: dict[str, int]
    tokenizer_folder: Path
    tokenizer_checksum: str  # xxh3_128 of tokenizer.json, hex
    settings: dict[str, Any]
    splits: dict[str, Split]
    token_counts_name: str
    token_counts_checksum: str  # xxh3_128 of the file, hex


def canonical_json(value: object) -> bytes:
    """The one way to write `value`: sorted keys, no spaces, UTF-8, a newline at the end."""
    return (json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n").encode()


def write_manifest(
    directory: Path,
    *,
    token_dtype: str,
    vocabulary_size: int,
    special_ids: Mapping[str, int],
    tokenizer_checksum: str,
    settings: Mapping[str, Any],
    splits: Mapping[str, Split],
    token_counts_checksum: str,
) -> Manifest:
    """Write manifest.json, whole or not at all, and return it as read back. UserError when the disk refuses."""
    document = {
        "format": FORMAT,
        "version": VERSION,
        "token_dtype": token_dtype,
        "vocabulary_size": vocabulary_size,
        "special_ids": dict(special_ids),
        "tokenizer": {"folder": TOKENIZER_FOLDER, "checksum": tokenizer_checksum},
        "settings": dict(settings),
        "splits": {name: _split_document(split) for name, split in splits.items()},
        "token_counts": {"name": TOKEN_COUNTS_NAME, "checksum": token_counts_checksum},
    }
    write_whole(directory / MANIFEST_NAME, canonical_json(document))
    return load_manifest(directory)


def load_manifest(directory: Path) -> Manifest:
    """Read DIR/manifest.json.

    Raises UserError when the folder or the file is not there, DataError when it is damaged or contradicts itself.
    """
    path = directory / MANIFEST_NAME
    if not directory.is_dir():
        raise UserError(
            f"{directory}: no such folder (build it with: python -m data_pipeline build --output {directory})"
        )
    if not path.is_file():
        raise UserError(
            f"{directory}: no {MANIFEST_NAME}, so no finished data set (an interrupted build? build it again)"
        )
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot read: {error.strerror}") from error
    try:
        return _parse(directory, content)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path}: damaged: {reason}; copy it again or build the data set again") from error


def load_token_counts(manifest: Manifest) -> npt.NDArray[np.int64]:
    """How often each id occurs in the train split, int64[V]. DataError when the file is missing or damaged."""
    path = manifest.directory / manifest.token_counts_name
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot read: {error.strerror}") from error
    if xxhash.xxh3_128_hexdigest(content) != manifest.token_counts_checksum:
        raise DataError(f"{path}: damaged: the checksum is not the manifest's")
    try:
        counts: npt.NDArray[np.int64] = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a .npy file: {error}") from error
    if counts.dtype != np.int64 or counts.shape != (manifest.vocabulary_size,):
        raise DataError(f"{path}: {counts.dtype}{list(counts.shape)}, expected int64[{manifest.vocabulary_size}]")
    return counts


def _split_document(split: Split) -> dict[str, Any]:
    return {
        "documents": split.documents,
        "tokens": split.tokens,
        "shards": [
            {
                "name": shard.name,
                "bytes": shard.bytes,
                "checksum": shard.checksum,
                "blocks": [[b.offset, b.bytes, b.tokens, b.documents, b.checksum] for b in shard.blocks],
            }
            for shard in split.shards
        ],
    }


def _parse(directory: Path, content: bytes) -> Manifest:
    """Raises ValueError, KeyError or TypeError for whatever is not as write_manifest writes it."""
    document = _mapping(json.loads(content), "the file")
    if (document["format"], document["version"]) != (FORMAT, VERSION):
        found = f"{document['format']!r} version {document['version']!r}"
        raise ValueError(f"format {found}, not {FORMAT!r} version {VERSION}")
    if document["token_dtype"] not in TOKEN_DTYPES:
        raise ValueError(f"token_dtype {document['token_dtype']!r}, not one of {', '.join(TOKEN_DTYPES)}")
    vocabulary_size = _count(document["vocabulary_size"], "vocabulary_size")
    special_ids = {name: _count(_mapping(document["special_ids"], "special_ids")[name], name) for name in SPECIALS}
    outside = [name for name, number in special_ids.items() if number >= vocabulary_size]
    if outside:
        raise ValueError(f"special id {outside[0]} is not below vocabulary_size {vocabulary_size}")
    splits = _mapping(document["splits"], "splits")
    return Manifest(
        directory=directory,
        identity=hashlib.sha256(content).hexdigest(),
        token_dtype=document["token_dtype"],
        vocabulary_size=vocabulary_size,
        special_ids=special_ids,
        tokenizer_folder=directory / _file_name(document["tokenizer"]["folder"]),
        tokenizer_checksum=_text(document["tokenizer"]["checksum"], "tokenizer checksum"),
        settings=_mapping(document["settings"], "settings"),
        splits={name: _parse_split(name, value) for name, value in splits.items()},
        token_counts_name=_file_name(document["token_counts"]["name"]),
        token_counts_checksum=_text(document["token_counts"]["checksum"], "token_counts checksum"),
    )


def _parse_split(name: str, value: Any) -> Split:
    split = Split(
        documents=_count(value["documents"], f"documents of {name}"),
        tokens=_count(value["tokens"], f"tokens of {name}"),
        shards=tuple(_parse_shard(shard) for shard in value["shards"]),
    )
    for total, unit in ((split.documents, "documents"), (split.tokens, "tokens")):
        found = sum(getattr(block, unit) for shard in split.shards for block in shard.blocks)
        if found != total:
            raise ValueError(f"split {name} says {total} {unit}, its blocks have {found}")
    return split


def _parse_shard(value: Any) -> ShardEntry:
    name = _file_name(value["name"])
    size = _count(value["bytes"], f"bytes of {name}")
    blocks = tuple(_parse_block(block, name) for block in value["blocks"])
    end = 0
    for block in blocks:
        if block.offset < end:
            raise ValueError(f"{name}: the block at byte {block.offset} overlaps the one before it")
        end = block.offset + block.bytes
    if end > size:
        raise ValueError(f"{name}: blocks end at byte {end}, the shard at {size}")
    return ShardEntry(name=name, bytes=size, checksum=_text(value["checksum"], f"checksum of {name}"), blocks=blocks)


def _parse_block(value: Any, shard: str) -> BlockEntry:
    *numbers, checksum = value
    offset, size, tokens, documents = (_count(number, f"a number of {shard}") for number in numbers)
    return BlockEntry(offset, size, tokens, documents, _text(checksum, f"a checksum of {shard}"))


def _mapping(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{what} is not a mapping")
    return value


def _count(value: Any, what: str) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{what} is {value!r}, not a count")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is {value!r}, not a text")
    return value


def _file_name(value: Any) -> str:
    """A plain name: a manifest from elsewhere must not reach outside its folder."""
    if not isinstance(value, str) or value in ("", ".", "..") or "/" in value or "\0" in value:
        raise ValueError(f"{value!r} is not a plain file name")
    return value
