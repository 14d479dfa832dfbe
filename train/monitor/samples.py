"""What the model predicts of a few held-out documents: lines of RUN/samples.jsonl, and pages of TensorBoard's tab Text.

Tokens are those of a WordPiece. It forgets where spaces were; here they stand where people put them, and never so that
the same tokenizer would read other tokens from the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from data_pipeline.ideographs import IDEOGRAPH

UNSEEN = "[UNSEEN]"  # in the place of a token that the model gets nothing of
LEGEND = "‹right›, **wrong**\\[what is right\\]; ▁ was not seen."
_GAP = "▁"
_CONTINUES = "##"
_BEFORE_WORDS, _BEHIND_WORDS = frozenset("([{“‘$#"), frozenset(".,!?:;%)]}”’…")
_TAILS = frozenset(("s", "t", "d", "m", "re", "ve", "ll"))  # of it's, don't, we're
_ESCAPED = re.compile(r"[\\`*_\[\]]")
_ENTITIES = {ord(character): f"&#{ord(character)};" for character in "&<>|~"}


@dataclass(frozen=True, slots=True)
class Sample:
    """What one head predicts of one document: lists of equal length, of tokens as in the vocabulary."""

    truth: list[str]
    shown: list[str]  # what the model sees in the place of each token
    predicted: list[str | None]  # None where nothing was asked


def record(step: int, documents: Sequence[Mapping[str, Sample]]) -> dict[str, Any]:
    """A line of samples.jsonl; each document is given as its samples by head."""
    told = [{"heads": {head: asdict(sample) for head, sample in heads.items()}} for heads in documents]
    return {"step": step, "documents": told}


def page(samples: Sequence[Sample]) -> str:
    """One head's samples of all documents as Markdown."""
    return "\n\n".join([LEGEND, *(_table(number, sample) for number, sample in enumerate(samples, start=1))])


def score(sample: Sample) -> str:
    """How many of the predictions are right, in words."""
    pairs = [pair for pair in zip(sample.predicted, sample.truth, strict=True) if pair[0] is not None]
    return f"{sum(guess == true for guess, true in pairs)} of {len(pairs)} right"


def _table(number: int, sample: Sample) -> str:
    head = (f"| {number} | {score(sample)} |", "|---|---|")
    rows = {"seen": _seen(sample), "guess": _predicted(sample), "truth": escaped(joined(sample.truth))}
    return "\n".join([*head, *(f"| {name} | {text} |" for name, text in rows.items())])


def _seen(sample: Sample) -> str:
    return _spaced(_seen_pieces(sample), spaces(sample.truth))


def _seen_pieces(sample: Sample) -> list[str]:
    pairs = enumerate(zip(sample.shown, sample.truth, strict=True))
    return [
        _GAP if shown == UNSEEN else escaped(joined([shown], goes_on=i > 0 and _continues(true)))
        for i, (shown, true) in pairs
    ]


def _predicted(sample: Sample) -> str:
    """What was seen, with the predictions in it; neighbours that are right, or wrong, stand together."""
    spaced, seen = spaces(sample.truth), _seen_pieces(sample)
    true = [escaped(piece) for piece in _pieces(sample.truth)]
    texts = []
    for run, is_right in _runs(sample):
        text = _spaced((seen if is_right is None else true)[run], spaced[run])
        if is_right is not None:
            text = f"‹{text}›" if is_right else f"**{escaped(_guessed(sample, run))}**\\[{text}\\]"
        texts.append(" " * spaced[run.start] + text)
    return "".join(texts)


def _runs(sample: Sample) -> Iterator[tuple[slice, bool | None]]:
    """Stretches that were predicted right, or wrong, or were no target (None)."""
    pairs = enumerate(zip(sample.predicted, sample.truth, strict=True))
    kinds = ((i, None if guess is None else guess == true) for i, (guess, true) in pairs)
    for kind, run in groupby(kinds, key=lambda pair: pair[1]):
        places = [i for i, _ in run]
        yield slice(places[0], places[-1] + 1), kind


def _guessed(sample: Sample, run: slice) -> str:
    goes_on = run.start > 0 and _continues(sample.truth[run.start])
    return joined([guess for guess in sample.predicted[run] if guess is not None], goes_on=goes_on)


def joined(tokens: Sequence[str], *, goes_on: bool = False) -> str:
    """Tokens as text. The ## of the first one stays, unless what came before `goes_on` in it."""
    return _spaced(_pieces(tokens, goes_on=goes_on), spaces(tokens))


def _pieces(tokens: Sequence[str], *, goes_on: bool = False) -> list[str]:
    glued = [(i > 0 or goes_on) and _continues(token) for i, token in enumerate(tokens)]
    return [token.removeprefix(_CONTINUES) if glue else token for token, glue in zip(tokens, glued, strict=True)]


def _spaced(pieces: Sequence[str], spaced: Sequence[bool]) -> str:
    """Pieces as text, without the space before the first."""
    return "".join(" " * (i > 0 and space) + piece for i, (piece, space) in enumerate(zip(pieces, spaced, strict=True)))


def spaces(tokens: Sequence[str]) -> list[bool]:
    """Whether a space stands before each token; none before the first."""
    spaced = [i > 0 and _is_space(tokens[i - 1], token) for i, token in enumerate(tokens)]
    for i in range(1, len(tokens) - 1):
        if _is_inside(tokens[i - 1], tokens[i], tokens[i + 1]):
            spaced[i] = spaced[i + 1] = False
    return spaced


def _is_inside(before: str, mark: str, after: str) -> bool:
    """Whether a mark stands inside what people write as one word or number."""
    if mark in ("'", "’"):
        return before[-1].isalpha() and after in _TAILS
    if mark in (".", ":"):
        return before[-1].isdigit() and after[0].isdigit()
    return mark in ("-", "_", "/") and before[-1].isalnum() and after[0].isalnum()


def _is_space(before: str, after: str) -> bool:
    if _continues(after) or _is_wide(before[-1]) or _is_wide(after[0]) or before == after == "—":
        return False
    return before not in _BEFORE_WORDS and after not in _BEHIND_WORDS


def _continues(token: str) -> bool:
    return len(token) > len(_CONTINUES) and token.startswith(_CONTINUES)


def _is_wide(character: str) -> bool:
    """Characters that are tokens by themselves and stand without spaces."""
    if IDEOGRAPH.match(character):
        return True
    return unicodedata.category(character)[0] == "P" and unicodedata.east_asian_width(character) in "WF"


def escaped(text: str) -> str:
    """Text that Markdown and HTML show as it is, in a cell of a table too."""
    return _ESCAPED.sub(lambda found: f"\\{found[0]}", text.translate(_ENTITIES))
