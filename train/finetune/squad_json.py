"""Questions with their contexts and answers, out of SQuAD-format JSON or rows of the same columns.

Rajpurkar et al. 2016 (SQuAD 1.1), Rajpurkar et al. 2018 (2.0: `is_impossible`); CMRC 2018 and XQuAD have the same form.
`answer_start` counts characters (Unicode code points) of the context.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import hub
from train.errors import DataError
from train.finetune.rows import Row, read_rows, text_of
from train.finetune.text_files import read_text


@dataclass(frozen=True, slots=True)
class Answer:
    """What an annotator marked; `start` is None where the text does not stand in the context."""

    text: str
    start: int | None


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one context."""

    id: str
    text: str
    context: str
    answers: tuple[Answer, ...]
    impossible: bool
    place: str  # file and id, for messages

    @property
    def marked(self) -> Answer | None:
        """The first answer whose place in the context is known: what training aims at."""
        return next((answer for answer in self.answers if answer.start is not None), None)


@dataclass(frozen=True, slots=True)
class Repairs:
    """How many answers were not at their offset, and what became of them."""

    answers: int = 0
    moved: int = 0
    left_out: int = 0

    def sentences(self, source: str) -> list[str]:
        """What a user should know; nothing where nothing was wrong."""
        if not self.moved + self.left_out:
            return []
        return [
            f"{source}: {self.moved + self.left_out:,} of {self.answers:,} answers are not at their offset: "
            f"{self.moved:,} moved to the nearest place of their text, {self.left_out:,} stand nowhere in their "
            "context and only count as right answers when scoring."
        ]


def read_squad(source: str, repair: bool = False) -> tuple[list[Question], Repairs]:
    """All questions in order: of a SQuAD-format JSON file, or of rows with the columns that SQuAD has on the hub.

    An answer that does not stand at its offset is a DataError with file, question and offset; with `repair` it moves to
    the nearest place of its text, or loses its place where there is none. Raises UserError where there is no file, and
    DataError for what is no such file, asks nothing or has two questions of one id.
    """
    content = _nested(source)
    found = _flat(read_rows(source)) if content is None else _questions(source, content)
    questions = list(found)
    if not questions:
        raise DataError(f"{source}: no question in it")
    _refuse_repeated(source, questions)
    if repair:
        return _repaired(questions)
    _refuse_misplaced(questions)
    return questions, Repairs(sum(len(question.answers) for question in questions))


def read_questions(source: str) -> list[Question] | None:
    """The questions of a SQuAD-format JSON file, wherever their answers stand; None for a source of rows."""
    content = _nested(source)
    return None if content is None else list(_questions(source, content))


def stands_there(context: str, answer: Answer) -> bool:
    """Whether the context says the answer's text at its offset."""
    start = answer.start
    return start is not None and start >= 0 and bool(answer.text) and context.startswith(answer.text, start)


def nearest(context: str, answer: Answer) -> Answer:
    """The answer where its text stands closest to its offset, without the white space around it if need be."""
    wanted = answer.start or 0
    for text in dict.fromkeys((answer.text, answer.text.strip())):
        if places := list(_places(context, text)):
            return Answer(text, min(places, key=lambda place: abs(place - wanted)))
    return Answer(answer.text, None)


def _places(context: str, text: str) -> Iterator[int]:
    place = context.find(text) if text else -1
    while place >= 0:
        yield place
        place = context.find(text, place + 1)


def _repaired(questions: list[Question]) -> tuple[list[Question], Repairs]:
    answers = moved = left_out = 0
    result = []
    for question in questions:
        kept = []
        for answer in question.answers:
            found = answer if stands_there(question.context, answer) else nearest(question.context, answer)
            answers, left_out = answers + 1, left_out + (found.start is None)
            moved += found is not answer and found.start is not None
            kept.append(found)
        result.append(
            Question(question.id, question.text, question.context, tuple(kept), question.impossible, question.place)
        )
    return result, Repairs(answers, moved, left_out)


def _refuse_misplaced(questions: list[Question]) -> None:
    wrong = [
        (question, answer)
        for question in questions
        for answer in question.answers
        if not stands_there(question.context, answer)
    ]
    if wrong:
        question, answer = wrong[0]
        total = sum(len(question.answers) for question in questions)
        start = answer.start or 0
        there = question.context[start : start + len(answer.text)] if start >= 0 else ""
        raise DataError(
            f"{question.place}: the answer {_short(answer.text)} does not stand at offset {start} of its context"
            f"{f', where {_short(there)} stands' if there else ''}; so with {len(wrong):,} of {total:,} answers: "
            "--repair moves them to where their text stands, and leaves out those that stand nowhere"
        )


def _refuse_repeated(source: str, questions: list[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise DataError(
                f"{source}: two questions have the id {question.id!r}, so a prediction could not name its own"
            )
        seen.add(question.id)


def _nested(source: str) -> Any:
    """The content of a JSON file; None where the source is of rows."""
    if hub.parse(source) or not Path(source).name.lower().removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        return None
    text = read_text(Path(source))
    if text.lstrip().startswith("["):
        return None
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":  # an object a line
            return None
        raise DataError(f"{source}:{error.lineno}: not JSON ({error.msg}, column {error.colno})") from error
    except RecursionError as error:
        raise DataError(f"{source}: nested too deeply to be a SQuAD file") from error


def _flat(rows: list[Row]) -> Iterator[Question]:
    """Columns id, question, context and answers: {"text": [...], "answer_start": [...]}."""
    for number, row in enumerate(rows):
        answers = row.fields.get("answers")
        if isinstance(answers, dict):
            texts, starts = answers.get("text"), answers.get("answer_start")
            if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
                raise DataError(f'{row.place}: "answers" needs as many answer_start as text')
            answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
        # The hub's SQuAD 2.0 has no is_impossible; there, no answers say the same.
        entry = {"id": str(number), "is_impossible": answers == []} | row.fields | {"answers": answers or []}
        yield _question(row.place, text_of(row, "context"), entry, "the row", row.place)


def _questions(source: str, content: Any) -> Iterator[Question]:
    for a, article in enumerate(_list(source, content, "data", "the file")):
        for p, paragraph in enumerate(_list(source, article, "paragraphs", f"data[{a}]")):
            where = f"data[{a}].paragraphs[{p}]"
            context = _text(source, paragraph, "context", where)
            for q, entry in enumerate(_list(source, paragraph, "qas", where)):
                yield _question(source, context, entry, f"{where}.qas[{q}]")


def _question(source: str, context: str, entry: Any, where: str, place: str | None = None) -> Question:
    text, name = _text(source, entry, "question", where), entry.get("id")
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise DataError(f'{source}: {where} has no "id"')
    place = place or f"{source}: question {name}"
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise DataError(f"{place}: is_impossible is {impossible!r}, neither true nor false")
    given = entry.get("answers", []) if not impossible else []  # 2.0's plausible answers are none
    if not isinstance(given, list):
        raise DataError(f'{place}: "answers" is no list')
    return Question(str(name), text, context, tuple(_answer(answer, place) for answer in given), impossible, place)


def _answer(entry: Any, place: str) -> Answer:
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise DataError(f'{place}: an answer without a "text"')
    start = entry.get("answer_start")
    if not isinstance(start, int) or isinstance(start, bool):
        raise DataError(f"{place}: the answer {_short(entry['text'])} has no whole number as answer_start")
    return Answer(entry["text"], start)


def _list(source: str, parent: Any, key: str, where: str) -> list[Any]:
    found = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(found, list):
        raise DataError(
            f'{source}: {where} has no list "{key}"; a SQuAD file is {{"data": [{{"paragraphs": [{{"context", "qas": '
            '[{"id", "question", "answers": [{"text", "answer_start"}]}]}]}]}'
        )
    return found


def _text(source: str, parent: Any, key: str, where: str) -> str:
    found = parent.get(key) if isinstance(parent, dict) else None
    if not isinstance(found, str):
        raise DataError(f'{source}: {where} has no text "{key}"')
    return found


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
