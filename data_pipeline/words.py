"""Which tokens start a word: one rule for each way of finding words."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RULES = "wordpiece"  # stands in the manifest: change it when the outcome changes


def starting_ids(vocabulary: Sequence[str], continuing_prefix: str) -> npt.NDArray[np.bool_]:
    """bool[V]: True for the ids that start a word, which is all that lack WordPiece's continuing prefix ("##")."""
    return np.array([not token.startswith(continuing_prefix) for token in vocabulary], dtype=np.bool_)
