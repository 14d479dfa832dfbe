"""Which tokens start a word: pieces decide for alphabets, a segmenter decides for Chinese.

A word of the pre-tokenizer (letters, one punctuation mark or one ideograph; W of them) is never divided. It belongs to
the segment that covers its first character; those of one segment with an ideograph in it are one word. Segments without
an ideograph change nothing. Legend: T tokens, W words of the pre-tokenizer, S segments, C characters.
"""

import re
import sys
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from data_pipeline.segment import Segmenter

RULES = "wordpiece, Chinese by segments"  # stands in the manifest: change it when the outcome changes
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2EBEF), (0x2F800, 0x2FA1F))
IDEOGRAPH = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _IDEOGRAPHS) + "]")


def starting_ids(vocabulary: Sequence[str], continuing_prefix: str) -> npt.NDArray[np.bool_]:
    """bool[V]: True for the ids that start a word, which is all that lack WordPiece's continuing prefix ("##")."""
    return np.array([not token.startswith(continuing_prefix) for token in vocabulary], dtype=np.bool_)


def join_segments(
    text: str, segment: Segmenter, positions_W: npt.NDArray[np.intp], starts_T: npt.NDArray[np.bool_]
) -> None:
    """Unset in `starts_T` what continues the segment before it. Words of the pre-tokenizer begin at `positions_W`."""
    segments = segment(text)
    lengths_S = np.fromiter(map(len, segments), np.intp, len(segments))
    ends_S = np.cumsum(lengths_S)
    number_W = _segment_numbers(ends_S)[positions_W]
    joined_W = (number_W[1:] == number_W[:-1]) & _chinese(text, ends_S - lengths_S, ends_S)[number_W[1:]]
    continues_W = np.zeros(positions_W.size, np.bool_)
    continues_W[1:] = joined_W
    starts_T[starts_T] = ~continues_W


def _segment_numbers(ends_S: npt.NDArray[np.intp]) -> npt.NDArray[np.int32]:
    """int32[C]: the segment of each character, from 0. A running sum is faster than a search for each word."""
    steps_C = np.zeros(ends_S[-1] if ends_S.size else 0, np.bool_)
    steps_C[ends_S[:-1]] = True
    return np.cumsum(steps_C, dtype=np.int32)


def _chinese(text: str, starts_S: npt.NDArray[np.intp], ends_S: npt.NDArray[np.intp]) -> npt.NDArray[np.bool_]:
    """bool[S]: whether there is an ideograph in a segment."""
    codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    before_C1 = np.zeros(codes_C.size + 1, np.int32)  # ideographs before each character, and in all
    np.cumsum(_ideographs()[codes_C], out=before_C1[1:])
    chinese_S: npt.NDArray[np.bool_] = before_C1[ends_S] > before_C1[starts_S]
    return chinese_S


@cache
def _ideographs() -> npt.NDArray[np.bool_]:
    """bool[0x110000]: which characters are ideographs."""
    table = np.zeros(sys.maxunicode + 1, np.bool_)
    for first, last in _IDEOGRAPHS:
        table[first : last + 1] = True
    return table
