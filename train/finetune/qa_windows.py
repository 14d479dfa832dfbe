"""A question and its context as windows of tokens that a model reads, and where in them an answer stands.

Neighbouring windows share `overlap` tokens of the context, so that what one of them cuts stands whole in the next. An
answer that is longer than the overlap and cut by all of them gets a window of its own. Places are characters of the
context as it was read, whatever the tokenizer made of it.

Legend: N tokens of a context.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from train.errors import UserError
from train.finetune.squad_json import Answer, Question

_QUESTION_SHARE = 3  # a question takes at most a third of a window
_BATCH = 256  # questions that the tokenizer takes at a time

Span = tuple[int, int]  # [begin, end)


@dataclass(frozen=True, slots=True)
class Reading:
    """How contexts are cut, in tokens."""

    max_length: int  # of a window, question and special tokens among them
    overlap: int  # of the context, shared by neighbours


@dataclass(frozen=True, slots=True)
class Frame:
    """What the tokenizer puts around a pair of texts: [CLS] question [SEP] context [SEP], or its family's own."""

    before: list[int]
    between: list[int]
    after: list[int]
    types: tuple[int, int] | None  # of question and context with the special tokens behind them; None: none needed

    @property
    def specials(self) -> int:
        """Number of special tokens."""
        return len(self.before) + len(self.between) + len(self.after)


@dataclass(frozen=True, slots=True)
class Pair:
    """The tokens of one question and its context, whole."""

    number: int  # of the question
    question: list[int]
    context: list[int]
    places_N2: npt.NDArray[np.int64]  # characters [begin, end) of each token of the context


@dataclass(frozen=True, slots=True)
class Window:
    """Which tokens of a pair one sequence of the model holds, and where in it they stand."""

    pair: Pair
    tokens: Span  # of the context
    offset: int  # of the first of them in the sequence

    def place(self, token: int) -> Span:
        """Characters of the token at place `token` of the sequence, which must be one of the context."""
        begin, end = self.pair.places_N2[self.tokens[0] + token - self.offset].tolist()
        return begin, end


def check_reading(frame: Frame, reading: Reading) -> None:
    """UserError where a window beside the longest question would have no room to move on."""
    room = reading.max_length - reading.max_length // _QUESTION_SHARE - frame.specials
    if not 0 <= reading.overlap < room:
        raise UserError(
            f"--stride {reading.overlap}: with --max-length {reading.max_length} a window has room for {max(room, 0)} "
            f"tokens of context beside the longest question, and the next must move on: give 0 to {max(room - 1, 0)}"
        )


def frame_of(tokenizer: Any) -> Frame:
    """How this tokenizer frames a pair."""
    encoded = tokenizer("a", "b", return_token_type_ids=True)
    parts, ids = encoded.sequence_ids(), encoded["input_ids"]
    first, second = parts.index(0), parts.index(1)
    first_end, second_end = len(parts) - parts[::-1].index(0), len(parts) - parts[::-1].index(1)
    types = encoded["token_type_ids"]
    needed = "token_type_ids" in tokenizer.model_input_names
    return Frame(
        ids[:first], ids[first_end:second], ids[second_end:], (types[first], types[second]) if needed else None
    )


def pairs(tokenizer: Any, questions: Sequence[Question], reading: Reading) -> Iterator[Pair]:
    """The tokens of every question, cut to a third of a window, and of its context, whole."""
    most = reading.max_length // _QUESTION_SHARE
    for first in range(0, len(questions), _BATCH):
        some = questions[first : first + _BATCH]
        asked = _tokens(tokenizer, [question.text for question in some])["input_ids"]
        read = _tokens(tokenizer, [question.context for question in some], return_offsets_mapping=True)
        rows = zip(asked, read["input_ids"], read["offset_mapping"], strict=True)
        for row, (question, context, places) in enumerate(rows):
            yield Pair(first + row, question[:most], context, np.array(places, dtype=np.int64).reshape(-1, 2))


def _tokens(tokenizer: Any, texts: list[str], **wanted: bool) -> Any:
    # split_special_tokens: a literal "[SEP]" of a text is text.
    return tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False, **wanted)


def windows(pair: Pair, frame: Frame, reading: Reading) -> list[Window]:
    """Windows that hold every token of the context, from left to right; one where there is none."""
    offset, room = _layout(pair, frame, reading)
    starts = range(0, max(len(pair.context) - reading.overlap, 1), room - reading.overlap)
    return [Window(pair, (start, min(start + room, len(pair.context))), offset) for start in starts]


def window_around(pair: Pair, tokens: Span, frame: Frame, reading: Reading) -> Window | None:
    """The window with these tokens of the context in its middle; None where they are more than it holds."""
    offset, room = _layout(pair, frame, reading)
    if tokens[1] - tokens[0] > room:
        return None
    spare = room - (tokens[1] - tokens[0])
    start = max(0, min(tokens[0] - spare // 2, len(pair.context) - room))
    return Window(pair, (start, min(start + room, len(pair.context))), offset)


def _layout(pair: Pair, frame: Frame, reading: Reading) -> tuple[int, int]:
    """(place of the first token of the context in a sequence, room for the context)."""
    return (
        len(frame.before) + len(pair.question) + len(frame.between),
        reading.max_length - len(pair.question) - frame.specials,
    )


def inputs(window: Window, frame: Frame) -> dict[str, list[int]]:
    """What the model is given for a window, without padding."""
    context = window.pair.context[slice(*window.tokens)]
    ids = [*frame.before, *window.pair.question, *frame.between, *context, *frame.after]
    result = {"input_ids": ids, "attention_mask": [1] * len(ids)}
    if frame.types is not None:
        result["token_type_ids"] = [frame.types[0]] * window.offset + [frame.types[1]] * (len(ids) - window.offset)
    return result


def answer_tokens(pair: Pair, answer: Answer) -> Span | None:
    """The tokens of the context [first, end) that share a character with an answer; None where none does."""
    if answer.start is None:
        return None
    begin, end = answer.start, answer.start + len(answer.text)
    touched = np.nonzero((pair.places_N2[:, 1] > begin) & (pair.places_N2[:, 0] < end))[0]
    return (int(touched[0]), int(touched[-1]) + 1) if len(touched) else None


def within(window: Window, tokens: Span) -> Span | None:
    """Places of the first and the last of these tokens of the context in the sequence; None where one is missing."""
    if not window.tokens[0] <= tokens[0] < tokens[1] <= window.tokens[1]:
        return None
    shift = window.offset - window.tokens[0]
    return tokens[0] + shift, tokens[1] - 1 + shift


def characters(window: Window, first: int, last: int, context: str) -> Span:
    """The characters of the context from the token at place `first` of the sequence to that at `last`.

    A mark over the last character that the tokenizer dropped, as uncased vocabularies do with accents, belongs to it.
    """
    begin, end = window.place(first)[0], window.place(last)[1]
    while end < len(context) and unicodedata.combining(context[end]):
        end += 1
    return begin, end
