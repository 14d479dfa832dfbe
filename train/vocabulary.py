"""What training needs to know of a tokenizer: its special ids and which ids are ordinary."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import numpy as np
import xxhash

from data_pipeline.manifest import Manifest, load_token_counts
from train.errors import DataError

_UNUSED = re.compile(r"\[unused\d+\]")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`ordinary_ids` (int64[N]) are the ids a random replacement may be: no special and no `[unusedN]`."""

    size: int
    special_ids: dict[str, int]
    ordinary_ids: np.ndarray
    most_frequent_id: int  # of the training split: the guess every head must beat
    unigram_entropy: float  # nats per token: the loss of knowing the frequencies and nothing else


def load_vocabulary(manifest: Manifest) -> Vocabulary:
    """The vocabulary of a data set, from the tokenizer stored beside its shards.

    Raises DataError when the tokenizer's file is missing, not the one of the shards, or without a vocabulary.
    """
    path = manifest.tokenizer_folder / "tokenizer.json"
    try:
        content = path.read_bytes()
        description = json.loads(content)
        tokens = description["model"]["vocab"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a readable tokenizer.json with a vocabulary ({error}); build again") from error
    if xxhash.xxh3_128_hexdigest(content) != manifest.tokenizer_checksum:
        raise DataError(f"{path}: damaged, or not the tokenizer of these shards; copy it again or build again")
    special = {entry["id"] for entry in description.get("added_tokens", []) if entry.get("special")}
    special |= set(manifest.special_ids.values())
    ordinary = [i for token, i in tokens if i not in special and not _UNUSED.fullmatch(token)]
    counts = load_token_counts(manifest)
    shares = counts[counts > 0] / max(1, counts.sum())
    return Vocabulary(
        size=manifest.vocabulary_size,
        special_ids=manifest.special_ids,
        ordinary_ids=np.sort(np.array(ordinary, dtype=np.int64)),
        most_frequent_id=int(counts.argmax()),
        unigram_entropy=float(-(shares * np.log(shares)).sum()),
    )
