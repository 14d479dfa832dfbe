"""A data set of random ids with lengths and frequencies like those of text, for benchmarks without a corpus.

Legend: T tokens, D documents, V vocabulary.
"""

from pathlib import Path

import numpy as np
import xxhash

from data_pipeline.manifest import Manifest, Split, write_manifest
from data_pipeline.shards import ShardWriter, encode_block
from data_pipeline.tokenizer import load_tokenizer, save_tokenizer

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
BLOCK_TOKENS, BLOCKS_PER_SHARD = 1 << 19, 16
SEED = 1


def random_shards(folder: Path, tokens: int, vocabulary: int) -> Manifest:
    """About so many tokens, in whole blocks: documents of about 800 on average, most shorter, some far longer."""
    folder.mkdir(parents=True)
    rng, shards = np.random.default_rng(SEED), []
    numbers = range(max(2, round(tokens / BLOCK_TOKENS)))
    for first in range(0, len(numbers), BLOCKS_PER_SHARD):
        with ShardWriter(folder / f"train-{len(shards):06d}.tar") as writer:
            for number in numbers[first : first + BLOCKS_PER_SHARD]:
                _write_block(writer, number, rng, vocabulary)
            shards.append(writer.finish())
    return _manifest(folder, Split.of(shards), vocabulary)


def _write_block(writer: ShardWriter, number: int, rng: np.random.Generator, vocabulary: int) -> None:
    lengths_D = np.clip(rng.lognormal(6.0, 1.2, 4_000), 4, 100_000).astype(np.int64)
    lengths_D = lengths_D[: max(1, np.searchsorted(np.cumsum(lengths_D), BLOCK_TOKENS))]
    tokens = int(lengths_D.sum())
    ordinary = vocabulary - len(SPECIALS)
    # The r-th most frequent id has a share of about 1 / r: the logarithm of the rank is uniform.
    ids_T = len(SPECIALS) - 1 + np.exp(rng.random(tokens) * np.log(ordinary)).astype(np.int64)
    offsets_D1 = np.concatenate([[0], np.cumsum(lengths_D)]).astype(np.uint32)
    writer.write(
        encode_block(number, ids_T.astype(np.uint16), offsets_D1, rng.random(tokens) < 0.7, "random"),
        tokens,
        len(lengths_D),
    )


def _manifest(folder: Path, split: Split, vocabulary: int) -> Manifest:
    """With a tokenizer whose words mean nothing."""
    path = folder / "vocab.txt"
    words = (f"w{number}" for number in range(vocabulary - len(SPECIALS)))
    path.write_text("\n".join([*SPECIALS, *words]) + "\n", encoding="utf-8")
    tokenizer = load_tokenizer(path)
    save_tokenizer(tokenizer, folder / "tokenizer")
    np.save(folder / "token-counts.npy", np.ones(vocabulary, np.int64))
    return write_manifest(
        folder,
        token_dtype="uint16",  # noqa: S106 (a token of text, no secret)
        vocabulary_size=vocabulary,
        special_ids=tokenizer.special_ids,
        tokenizer_checksum=tokenizer.checksum,
        settings={},
        splits={"train": split},
        token_counts_checksum=xxhash.xxh3_128_hexdigest((folder / "token-counts.npy").read_bytes()),
    )
