"""Semantic similarity: how well cosines of frozen vectors order pairs of texts, by Spearman's rank correlation.

Legend: N texts, D width, P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from train.errors import DataError
from train.finetune.packages import require
from train.finetune.rows import Row, read_rows, text_of
from train.probes.probe import Probe, Vectors, chosen, silent, unit


def similarity_probe(name: str, path: Path, most: int) -> Probe:
    """Spearman's correlation of cosines and scores, over at most `most` rows {a, b, score} of a file.

    Raises UserError and DataError with the place of the first mistake.
    """
    require("scipy")
    rows = read_rows(str(path))
    taken = chosen(rows, most, name)
    scores_P = [_score(row) for row in taken]
    if len(set(scores_P)) < 2:
        raise DataError(f"{path}: all pairs have one score: there is no order to find")
    texts = [text_of(row, side) for side in ("a", "b") for row in taken]

    def measure(vectors_ND: Vectors) -> float:
        return cosine_spearman(vectors_ND[: len(taken)], vectors_ND[len(taken) :], scores_P)

    return Probe(name, "spearman", texts, measure, words=f"{len(taken):,} of {len(rows):,} pairs")


def cosine_spearman(a_PD: Vectors, b_PD: Vectors, scores_P: Sequence[float]) -> float:
    """The rank correlation; NaN where all cosines are equal."""
    from scipy.stats import spearmanr

    with silent():
        return float(spearmanr((unit(a_PD) * unit(b_PD)).sum(1), scores_P).statistic)


def _score(row: Row) -> float:
    try:
        score = float(row.fields["score"])
    except (KeyError, TypeError, ValueError):
        score = math.nan
    if not math.isfinite(score):
        raise DataError(f"{row.place}: no 'score' that is a number")
    return score
