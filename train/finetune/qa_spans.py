"""From the scores of tokens to answers: one list of the best spans of a question over all of its windows.

Devlin et al. 2019, section 4.2: the score of a span is that of its first token as a start and its last as an end. The
same span in two windows counts once, with its better score. The score of no answer is that of the first token, the
lowest of all windows (evaluate-v2.0.py's models of Google's run_squad.py).

Legend: T tokens of a window, N tokens of context in it, L tokens of the longest span.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.finetune.qa_windows import Span, Window, characters

Scores = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """A span of characters; begin == end says that the context has no answer."""

    begin: int
    end: int
    score: float
    probability: float  # among the spans of the list


def best_spans(
    scored: Iterable[tuple[Window, Scores, Scores]], context: str, longest: int, count: int, may_be_none: bool
) -> list[Found]:
    """The best `count` spans of at most `longest` tokens, best first; empty where the context has no token.

    `scored` has the windows of one question with start and end scores [T] of each; what stands behind a window's own
    tokens is not looked at.
    """
    best: dict[Span, float] = {}
    none = float("inf")
    for window, start_T, end_T in scored:
        none = min(none, float(start_T[0]) + float(end_T[0]))
        for first, last, score in _spans(window, start_T, end_T, longest, count):
            span = characters(window, first, last, context)
            best[span] = max(score, best.get(span, score))
    if may_be_none and none < float("inf"):
        best[0, 0] = none
    ordered = sorted(best.items(), key=lambda item: (-item[1], item[0]))[:count]
    shares = _softmax([score for _, score in ordered])
    return [Found(*span, score, share) for (span, score), share in zip(ordered, shares, strict=True)]


def _spans(window: Window, start_T: Scores, end_T: Scores, longest: int, count: int) -> list[tuple[int, int, float]]:
    """The best spans of one window as (place of the first token, of the last, score)."""
    here = slice(window.offset, window.offset + window.tokens[1] - window.tokens[0])
    start_N, end_N = start_T[here].astype(np.float64), end_T[here].astype(np.float64)
    if not len(start_N):
        return []
    length = min(longest, len(end_N))
    ends_NL = np.lib.stride_tricks.sliding_window_view(np.pad(end_N, (0, length - 1), constant_values=-np.inf), length)
    score_NL = start_N[:, None] + ends_NL
    flat = score_NL.ravel()
    places = np.argpartition(-flat, count - 1)[:count] if count < len(flat) else np.arange(len(flat))
    firsts, more = np.unravel_index(places, score_NL.shape)
    found = zip(firsts.tolist(), more.tolist(), flat[places].tolist(), strict=True)
    offset = window.offset
    return [(offset + first, offset + first + extra, score) for first, extra, score in found if score > -np.inf]


def _softmax(scores: list[float]) -> list[float]:
    if not scores:
        return []
    powers = np.exp(np.array(scores) - max(scores))
    shares: list[float] = (powers / powers.sum()).tolist()
    return shares
