"""A small data set for stores, and whether a store gives its blocks."""

from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.manifest import BlockEntry, Manifest, Split, write_manifest
from data_pipeline.shards import ShardWriter, encode_block
from train.data.remote import BlockStore


def write_small_set(folder: Path) -> Manifest:
    """Two shards of 12 blocks of about 12 kB with all that the pipeline puts beside them."""
    rng, shards, documents, tokens = np.random.default_rng(1), [], 4, 5_000
    for number in range(2):
        with ShardWriter(folder / f"train-{number:06d}.tar") as writer:
            for block in range(12):
                ids = rng.integers(5, 30_000, size=tokens).astype(np.uint16)
                offsets = np.linspace(0, tokens, documents + 1).astype(np.uint32)
                content = encode_block(12 * number + block, ids, offsets, rng.random(tokens) < 0.5, "test")
                writer.write(content, tokens, documents)
            shards.append(writer.finish())
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "tokenizer" / name).write_text(f'"{name}"', encoding="utf-8")
    np.save(folder / "token-counts.npy", np.zeros(30_000, np.int64))
    return write_manifest(
        folder,
        token_dtype="uint16",  # noqa: S106 (a token of text, no secret)
        vocabulary_size=30_000,
        special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
        tokenizer_checksum=xxhash.xxh3_128_hexdigest((folder / "tokenizer" / "tokenizer.json").read_bytes()),
        settings={},
        splits={"train": Split.of(shards)},
        token_counts_checksum=xxhash.xxh3_128_hexdigest((folder / "token-counts.npy").read_bytes()),
    )


def blocks_of(manifest: Manifest) -> list[tuple[str, BlockEntry]]:
    """(shard, block) of all blocks."""
    return [(shard.name, block) for shard in manifest.splits["train"].shards for block in shard.blocks]


def local_bytes(manifest: Manifest, shard: str, entry: BlockEntry) -> bytes:
    """What the local file has."""
    return (manifest.directory / shard).read_bytes()[entry.offset : entry.offset + entry.bytes]


def reads_all(store: BlockStore, manifest: Manifest) -> bool:
    """Whether every block has the bytes of the local file."""
    return all(store.get(*block) == local_bytes(manifest, *block) for block in blocks_of(manifest))
