"""From the raw records of a unit to cleaned, filtered texts, and the notes on what was dropped or changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_pipeline.clean import clean, normalize, unwanted_kinds
from data_pipeline.errors import DataError
from data_pipeline.formats import line_start
from data_pipeline.inputs import Input, open_input
from data_pipeline.notes import Example, Notes, excerpt
from data_pipeline.record import Record
from data_pipeline.sources import BadRecordError, Reading, Unit, read_units, record_text

EMPTY = "empty after cleaning"
_CHUNK_BYTES = 1 << 20
_NO_MISTAKES = ("blank line",)  # --strict lets them pass


class Text(NamedTuple):
    """A cleaned text that is not empty, and where its record starts."""

    line: int
    text: str


def clean_texts(unit: Unit) -> tuple[list[Text], Notes]:
    """The texts of a unit in their order, and the notes on the rest.

    With `strict` the first record, character or file that is not in order is a DataError with file and line.
    """
    texts: list[Text] = []
    notes = Notes()
    for record in unit.records:
        text = _text(unit, record, notes)
        if text is None:
            continue
        failed = unit.reading.filters.failed(text) if text else None
        if failed:
            notes.add(notes.dropped, f"filter {failed.name}", _example(unit, record, text, failed.measure))
        elif text:
            texts.append(Text(record.line, text))
        else:
            notes.add(notes.dropped, EMPTY, _example(unit, record))
    if unit.problem:
        reason, details = unit.problem
        _refuse_if_strict(unit, 0, f"{reason}: {details}")
        notes.add(notes.files, reason, Example(unit.input.source, unit.input.name, 0, details))
    return texts, notes


def read_texts(inputs: Sequence[Input], reading: Reading, notes: Notes) -> Iterator[str]:
    """All texts of all files in order, and in `notes` what became of the rest."""
    for unit in read_units(inputs, reading):
        texts, of_unit = clean_texts(unit)
        notes.update(of_unit)
        yield from (found.text for found in texts)


def _text(unit: Unit, record: Record, notes: Notes) -> str | None:
    """The cleaned text of a record, or None; both with their notes."""
    try:
        raw, repairs = record_text(unit, record)
    except BadRecordError as error:
        reason = str(error)
        if reason not in _NO_MISTAKES:
            _refuse_if_strict(unit, record.line, reason)
        notes.add(notes.dropped, reason, _example(unit, record))
        return None
    unwanted = unwanted_kinds(raw)
    for reason in dict.fromkeys([*repairs, *unwanted]):
        _refuse_if_strict(unit, record.line, reason)
        notes.add(notes.changed, reason, _example(unit, record))
    return clean(raw) if unwanted else normalize(raw)


def _example(unit: Unit, record: Record, text: str | None = None, measure: str = "") -> Example:
    return Example(unit.input.source, unit.input.name, record.line, excerpt(text or record.content), measure)


def lines_before(path: Path, start: int) -> int:
    """How many lines start before the byte `start`, of the line that is whole by then."""
    count = 0
    with open_input(path) as file:
        end = line_start(file, start)
        file.seek(0)
        while end > 0 and (chunk := file.read(min(_CHUNK_BYTES, end))):
            count += chunk.count(b"\n")
            end -= len(chunk)
    return count


def _refuse_if_strict(unit: Unit, line: int, reason: str) -> None:
    if unit.reading.strict:
        line += lines_before(unit.input.path, unit.start) if line else 0
        place = f"{unit.input.path}, line {line:,}" if line else str(unit.input.path)
        raise DataError(f"{place}: {reason} (--strict)")
