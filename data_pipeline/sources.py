"""Input files become units of raw records, read as a stream; the text of a record, or why it has none."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from data_pipeline import hub
from data_pipeline.filters import Filters
from data_pipeline.formats import Stretch, csv_fields, cut_at_character, kind, records
from data_pipeline.inputs import Input, open_input
from data_pipeline.record import BOM, CUT, OVERSIZED, FileProblemError, Record

UNIT_BYTES = 1 << 20  # of records: some tenths of a second of work, small enough to balance, large enough to ship
DEFAULT_MAX_DOCUMENT_BYTES = 8 << 20
OVERSIZED_RULES = ("drop", "cut")
_DATASETS = "datasets"  # the format of what the library opens
_PLAIN = (".txt", ".parquet", ".arrow", _DATASETS)  # a record is the text itself, so it may be cut anywhere


@dataclass(frozen=True, slots=True)
class Reading:
    """How files become texts: the options that a build and the training of a tokenizer share."""

    text_field: str = "text"
    txt_documents: str = "block"  # what is a document of a .txt file: one of formats.TXT_DOCUMENTS
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES  # of a record as it stands in the file
    oversized: str = "drop"  # what happens to a larger one: one of OVERSIZED_RULES
    strict: bool = False  # the first record or file that is not in order is an error
    filters: Filters = field(default_factory=Filters.none)


@dataclass(frozen=True, slots=True)
class Unit:
    """Consecutive records of one input file, about UNIT_BYTES of them; what a worker takes at a time."""

    input: Input
    format: str
    records: list[Record]
    reading: Reading
    read: int = 0  # bytes of the (compressed) input file that were read for it
    column: int = 0  # of the text, in .csv
    problem: tuple[str, str] | None = None  # (kind, details) of what ended the file after these records
    start: int = 0  # the byte of the file that lines are counted from

    @property
    def bytes(self) -> int:
        """Of all its records."""
        return sum(len(record.content) for record in self.records)


class BadRecordError(Exception):
    """A record that holds no text; its text is the kind of badness, for the report."""


def read_units(inputs: Sequence[Input], reading: Reading, unit_bytes: int = UNIT_BYTES) -> Iterator[Unit]:
    """All records of all files in order, as units; what is wrong with a file stands in the last unit of it."""
    for entry in inputs:
        for part in range(entry.parts):
            yield from part_units(entry, reading, part, unit_bytes)
        if not entry.parts:
            yield from file_units(entry, reading, None, unit_bytes)


def record_text(unit: Unit, record: Record) -> tuple[str, list[str]]:
    """The text of one record and what was repaired to get it. BadRecordError naming the kind when there is none."""
    repairs = [record.repair] if record.repair else []
    content = record.content
    if record.reason == OVERSIZED and unit.reading.oversized == "cut" and unit.format in _PLAIN:
        repairs, content = [*repairs, CUT], cut_at_character(content)
    elif record.reason:
        raise BadRecordError(record.reason)
    try:
        decoded = content.decode()
    except UnicodeDecodeError as error:
        raise BadRecordError("not UTF-8") from error
    if unit.format in _PLAIN:
        return decoded, repairs
    if decoded.startswith("\ufeff"):
        repairs, decoded = [*repairs, BOM], decoded[1:]
    if not decoded.strip():
        raise BadRecordError("blank line")
    return _csv_text(unit, decoded) if unit.format == ".csv" else _json_text(unit, decoded), repairs


def _csv_text(unit: Unit, row: str) -> str:
    try:
        fields = csv_fields(row)
    except csv.Error as error:
        raise BadRecordError("not CSV") from error
    if len(fields) <= unit.column:
        raise BadRecordError(f"no field {unit.reading.text_field!r}")
    return fields[unit.column]


def _json_text(unit: Unit, line: str) -> str:
    text_field = unit.reading.text_field
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRecordError("not JSON") from error
    if not isinstance(fields, dict):
        raise BadRecordError("not a JSON object")
    if text_field not in fields:
        raise BadRecordError(f"no field {text_field!r}")
    if not isinstance(fields[text_field], str):
        raise BadRecordError(f"field {text_field!r} is not a string")
    return str(fields[text_field])


def file_units(
    entry: Input, reading: Reading, stretch: Stretch | None = None, unit_bytes: int = UNIT_BYTES
) -> Iterator[Unit]:
    """The units of one file, or of the lines that start in a stretch of it."""
    file_format, _ = kind(entry.path)
    start, stop = stretch or Stretch(0, entry.size)
    done, column, problem = start, 0, None
    with open_input(entry.path) as file:
        limit = reading.max_document_bytes
        found = records(entry.path, file, reading.text_field, reading.txt_documents, limit, stretch)
        batches = _batches(found, unit_bytes)
        while True:
            batch: list[Record] = []
            try:
                batch = next(batches, [])
                if file_format == ".csv" and not done and batch:
                    column = _text_column(batch.pop(0), reading.text_field)
            except FileProblemError as error:
                batch, problem = [], (error.kind, error.details)
            if problem or not batch:
                break
            position = min(batch[-1].position or file.tell(), stop)  # a last line may go on beyond its stretch
            yield Unit(entry, file_format, batch, reading, position - done, column, start=start)
            done = position
    if problem or done < stop:
        yield Unit(entry, file_format, [], reading, max(0, stop - done), column, problem, start)


def part_units(entry: Input, reading: Reading, part: int, unit_bytes: int = UNIT_BYTES) -> Iterator[Unit]:
    """The units of one part of an input that the library `datasets` opens."""
    dataset = hub.parse(str(entry.path))
    if dataset is None:
        raise ValueError(f"{entry.path} is no input of datasets")
    found = hub.records(dataset, part, entry.parts, reading.text_field, reading.max_document_bytes)
    try:
        for batch in _batches(found, unit_bytes):
            yield Unit(entry, _DATASETS, batch, reading)
    except FileProblemError as error:
        yield Unit(entry, _DATASETS, [], reading, problem=(error.kind, error.details))


def _text_column(header: Record, text_field: str) -> int:
    """Which column of a .csv file holds the text; FileProblemError when none does."""
    try:
        names = csv_fields(header.content.decode("utf-8-sig"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FileProblemError("no text column", f"the first line is no header: {error}") from error
    if text_field not in names:
        raise FileProblemError("no text column", f"no column {text_field!r}, but {', '.join(names)}"[:200])
    return names.index(text_field)


def _batches(found: Iterable[Record], unit_bytes: int) -> Iterator[list[Record]]:
    """`found` in lists of about `unit_bytes`; what came before an error comes before it."""
    batch: list[Record] = []
    size = 0
    try:
        for record in found:
            batch.append(record)
            size += len(record.content)
            if size >= unit_bytes:
                yield batch
                batch, size = [], 0
    except FileProblemError:
        if batch:
            yield batch
        raise
    if batch:
        yield batch
