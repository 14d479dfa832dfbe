"""A look into a data set: its statistics and some documents with their words and pieces visible."""

from collections.abc import Iterator

import numpy as np

from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, load_token_counts
from data_pipeline.report import counted, megabytes
from data_pipeline.shards import map_shard, read_block, word_starts
from data_pipeline.tokenizer import load_tokenizer

TOKENS_SHOWN = 300  # of a document: a novel would fill the terminal
PIECE_MARK = "·"  # between the pieces of a word


def describe(manifest: Manifest) -> Iterator[str]:
    """The data set in sentences."""
    yield f"Data set {manifest.identity[:12]} in {manifest.directory}: {manifest.token_dtype} tokens."
    for name, split in manifest.splits.items():
        blocks = sum(len(shard.blocks) for shard in split.shards)
        size = sum(shard.bytes for shard in split.shards)
        yield (
            f"Split {name}: {counted(split.documents, 'document')}, {counted(split.tokens, 'token')} in "
            f"{counted(blocks, 'block')}, {counted(len(split.shards), 'shard')}, {megabytes(size)}."
        )
    counts_V = load_token_counts(manifest)
    used, unknown = np.count_nonzero(counts_V), counts_V[manifest.special_ids["unk"]] / max(1, counts_V.sum())
    yield f"Vocabulary: {manifest.vocabulary_size:,} tokens, {used:,} of them occur in train; {unknown:.3%} is [UNK]."
    for key, value in manifest.settings.items():
        if key == "inputs":
            yield from (f"Input {entry['name']}: {megabytes(entry['bytes'])}." for entry in value)
        else:
            yield f"Setting {key}: {value}"


def documents(manifest: Manifest, split: str) -> Iterator[str]:
    """The documents of a split, words apart, pieces of a word joined by PIECE_MARK, at most TOKENS_SHOWN.

    Raises DataError for damage.
    """
    vocabulary = load_tokenizer(manifest.tokenizer_folder).vocabulary
    if len(vocabulary) != manifest.vocabulary_size:
        raise DataError(f"{manifest.tokenizer_folder}: {len(vocabulary)} tokens, not {manifest.vocabulary_size}")
    for shard in manifest.splits[split].shards:
        content = map_shard(manifest.directory / shard.name)
        for entry in shard.blocks:
            block = read_block(content[entry.offset : entry.offset + entry.bytes], entry.tokens, entry.documents)
            starts_T = word_starts(block)
            for start, end in zip(block.offsets_D1[:-1].tolist(), block.offsets_D1[1:].tolist(), strict=True):
                shown = min(end, start + TOKENS_SHOWN)
                words = words_line([vocabulary[i] for i in block.ids_T[start:shown]], starts_T[start:shown].tolist())
                yield words if shown == end else f"{words} ... ({counted(end - shown, 'more token')})"


def words_line(tokens: list[str], starts: list[bool]) -> str:
    """Tokens with a space before each that starts a word and PIECE_MARK before the others."""
    pieces = [f" {token}" if first else PIECE_MARK + token for token, first in zip(tokens, starts, strict=True)]
    return "".join(pieces).replace(f"{PIECE_MARK}##", PIECE_MARK).lstrip()
