"""Which tokens start a word: pieces decide for alphabets, a segmenter decides for Chinese.

A word of the pre-tokenizer (letters, one punctuation mark or one ideograph; W of them) is never divided. It belongs to
the segment that covers its first character; those of one segment with an ideograph in it are one word. Segments without
an ideograph change nothing. Legend: T tokens, W words of the pre-tokenizer, S segments, C characters.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.ideographs import IDEOGRAPH, ideographs
from data_pipeline.segment import Segmenter

RULES = "wordpiece, Chinese by segments"  # stands in the manifest: change it when the outcome changes


def starting_ids(vocabulary: Sequence[str], continuing_prefix: str) -> npt.NDArray[np.bool_]:
    """bool[V]: True for the ids that start a word, which is all that lack WordPiece's continuing prefix ("##")."""
    return np.array([not token.startswith(continuing_prefix) for token in vocabulary], dtype=np.bool_)


def join_segments(
    text: str, segment: Segmenter, positions_W: npt.NDArray[np.intp], starts_T: npt.NDArray[np.bool_]
) -> None:
    """Unset in `starts_T` what continues the segment before it. Words of the pre-tokenizer begin at `positions_W`."""
    number_C = np.cumsum(segment(text), dtype=np.int32)  # the segment of each character
    number_W = number_C[positions_W]
    joined = np.flatnonzero(number_W[1:] == number_W[:-1]) + 1
    joined = joined[_chinese(text, number_C, positions_W, joined)]
    starts_T[np.flatnonzero(starts_T)[joined]] = False


def _chinese(
    text: str, number_C: npt.NDArray[np.int32], positions_W: npt.NDArray[np.intp], joined: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Whether there is an ideograph in the segments of the words `joined`, each with the word before it."""
    codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    chinese = ideographs()[codes_C[positions_W[joined]]] | ideographs()[codes_C[positions_W[joined - 1]]]
    for index in np.flatnonzero(~chinese).tolist():  # few: it is somewhere else in the segment, or nowhere
        number = number_C[positions_W[joined[index]]]
        first, end = np.searchsorted(number_C, [number, number + 1])
        chinese[index] = IDEOGRAPH.search(text, first, end) is not None
    return chinese
