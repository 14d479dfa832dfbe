"""What training needs to know of a tokenizer: its special ids, which ids are ordinary, how often each occurs.

Legend: K sources, V tokens of the vocabulary.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
    most_frequent_id: int  # of what is trained on: the guess every head must beat
    unigram_entropy: float  # nats per token: the loss of knowing the frequencies and nothing else


def load_vocabulary(*manifests_K: Manifest, shares: Sequence[float] = (1.0,)) -> Vocabulary:
    """The vocabulary of data sets that share a tokenizer, from the files stored beside the shards.

    `shares` says how much of what is read comes from each: frequencies are those of the mixture. Raises DataError when
    a tokenizer's file is missing, not the one of the shards, or without a vocabulary.
    """
    manifest, descriptions = manifests_K[0], [_description(manifest) for manifest in manifests_K]
    special = {entry["id"] for entry in descriptions[0].get("added_tokens", []) if entry.get("special")}
    special |= set(manifest.special_ids.values())
    tokens = descriptions[0]["model"]["vocab"].items()
    ordinary = [i for token, i in tokens if i not in special and not _UNUSED.fullmatch(token)]
    frequency_V = _frequencies(manifests_K, shares)
    known = frequency_V[frequency_V > 0]
    return Vocabulary(
        size=manifest.vocabulary_size,
        special_ids=manifest.special_ids,
        ordinary_ids=np.sort(np.array(ordinary, dtype=np.int64)),
        most_frequent_id=int(frequency_V.argmax()),
        unigram_entropy=float(-(known * np.log(known)).sum()),
    )


def _description(manifest: Manifest) -> dict[str, Any]:
    """The tokenizer.json of a data set, checked."""
    path = manifest.tokenizer_folder / "tokenizer.json"
    try:
        content = path.read_bytes()
        description: dict[str, Any] = json.loads(content)
        description["model"]["vocab"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a readable tokenizer.json with a vocabulary ({error}); build again") from error
    if xxhash.xxh3_128_hexdigest(content) != manifest.tokenizer_checksum:
        raise DataError(f"{path}: damaged, or not the tokenizer of these shards; copy it again or build again")
    return description


def _frequencies(manifests_K: Sequence[Manifest], shares_K: Sequence[float]) -> np.ndarray:
    """How often each token occurs in the mixture, [V]: they add up to 1, or to 0 where nothing was counted."""
    frequency_V = np.zeros(manifests_K[0].vocabulary_size)
    for manifest, share in zip(manifests_K, shares_K, strict=True):
        counts_V = load_token_counts(manifest)
        frequency_V += share * counts_V / max(1, counts_V.sum())
    return frequency_V / (frequency_V.sum() or 1.0)
