"""MinHash of a text's n-grams of units: band hashes that find near duplicates, and sketches that confirm them.

Broder 1997 (the share of equal minima estimates the Jaccard similarity J of two sets), Leskovec et al., Mining of
Massive Datasets, chapter 3 (bands: a pair with similarity J becomes a candidate with 1 - (1 - J**4)**32), Li and Koenig
2010 (the lowest 8 bits of a minimum are enough). The minima are rensa's, by fast similarity sketching (Dahlgaard et
al. 2017): as unbiased as 128 permutations, and with less variance for short texts.
Legend: D documents, B bands, S minima of a sketch.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.units import RULES as UNIT_RULES
from data_pipeline.dedup.units import Grams, grams, in_batches, mixed, units

WORDS, CHARACTERS = 3, 4  # units of an n-gram, by its first one: CJK characters say less than words
BANDS, ROWS = 32, 4
MINIMA = BANDS * ROWS  # S
THRESHOLD = 0.5  # with 5 % of the words changed J is about 0.75, with 10 % about 0.6
NO_BAND = 0  # of a text without a unit, which is nobody's near duplicate
_SEED = 1
_CHANCE = 1 / 256  # that two different minima have equal lowest 8 bits


class Sketches(NamedTuple):
    """What is kept of some texts."""

    bands_DB: npt.NDArray[np.uint64]
    sketch_DS: npt.NDArray[np.uint8]


def sketch(texts: Sequence[str]) -> Sketches:
    """The bands uint64[D, B] and sketches uint8[D, S] of `texts`; the same on every machine, fast for many at once."""
    parts = [
        Sketches(np.zeros((0, BANDS), np.uint64), np.zeros((0, MINIMA), np.uint8)),
        *(_batch(batch) for _, batch in in_batches(texts)),
    ]
    return Sketches(*map(np.concatenate, zip(*parts, strict=True)))


def similarity(sketch_DS: npt.NDArray[np.uint8], others_DS: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """float64[D]: the estimated Jaccard similarity of each pair of sketches, corrected for chance; may be below 0."""
    equal_D = np.count_nonzero(sketch_DS == others_DS, axis=1) / MINIMA
    estimated_D: npt.NDArray[np.float64] = (equal_D - _CHANCE) / (1 - _CHANCE)
    return estimated_D


def shingles(texts: Sequence[str]) -> Grams:
    """The n-grams that are compared; a text too short for one has one of all its units."""
    found = units(texts)
    return grams(found, WORDS, CHARACTERS, cut_first=True)


def settings() -> dict[str, Any]:
    """What decides the sketches, for the manifest."""
    import rensa

    return {
        "units": UNIT_RULES,
        "ngram_words": WORDS,
        "ngram_characters": CHARACTERS,
        "bands": BANDS,
        "rows": ROWS,
        "minhash": f"rensa R-MinHash {rensa.RMinHash.ALGORITHM_VERSION}, seed {_SEED}, 8 bits",
    }


def _batch(texts: Sequence[str]) -> Sketches:
    import rensa

    found = shingles(texts)
    matrix = rensa.RMinHash.digest_matrix_from_flat_token_hashes(
        found.hashes_N, found.firsts_T1.astype(np.uint64), MINIMA, _SEED
    )
    minima_DS = np.array(matrix.to_rows(), np.uint32)
    bands_DB = _band_hashes(minima_DS)
    bands_DB[np.diff(found.firsts_T1) == 0] = NO_BAND
    return Sketches(bands_DB, minima_DS.astype(np.uint8))


def _band_hashes(minima_DS: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    rows = minima_DS.reshape(-1, BANDS, ROWS).astype(np.uint64)
    pairs = rows[..., 0::2] << np.uint64(32) | rows[..., 1::2]
    hashes_DB = mixed(mixed(pairs[..., 0]) + pairs[..., 1])
    hashes_DB[hashes_DB == NO_BAND] = NO_BAND + 1
    return hashes_DB
