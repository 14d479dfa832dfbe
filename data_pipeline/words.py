"""Which tokens start a word: pieces decide for alphabets, a segmenter decides for Chinese.

A word of the pre-tokenizer (letters, one punctuation mark or one ideograph; W of them) is never divided. It belongs to
the segment that covers its first character; those of one segment with an ideograph in it are one word. Segments without
an ideograph change nothing. Legend: T tokens, W words of the pre-tokenizer, S segments.
"""

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.segment import Segmenter

RULES = "wordpiece, Chinese by segments"  # stands in the manifest: change it when the outcome changes
IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0002ebef\U0002f800-\U0002fa1f]")


def starting_ids(vocabulary: Sequence[str], continuing_prefix: str) -> npt.NDArray[np.bool_]:
    """bool[V]: True for the ids that start a word, which is all that lack WordPiece's continuing prefix ("##")."""
    return np.array([not token.startswith(continuing_prefix) for token in vocabulary], dtype=np.bool_)


def join_segments(
    text: str, segment: Segmenter, positions_W: npt.NDArray[np.intp], starts_T: npt.NDArray[np.bool_]
) -> None:
    """Unset in `starts_T` what continues the segment before it. Words of the pre-tokenizer begin at `positions_W`."""
    segments = segment(text)
    ends_S = np.cumsum(np.fromiter(map(len, segments), np.intp, len(segments)))
    chinese_S = np.fromiter((IDEOGRAPH.search(word) is not None for word in segments), np.bool_, len(segments))
    segment_W = np.searchsorted(ends_S, positions_W, side="right")
    continues_W = np.zeros(positions_W.size, np.bool_)
    continues_W[1:] = (segment_W[1:] == segment_W[:-1]) & chinese_S[segment_W[1:]]
    starts_T[starts_T] = ~continues_W
