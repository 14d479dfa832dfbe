"""From the raw records of a unit to cleaned texts, and the count of what is no text by reason."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data_pipeline.clean import clean
from data_pipeline.sources import BadRecordError, Unit, read_units, record_text


def clean_texts(unit: Unit, text_field: str) -> tuple[list[str], Counter[str]]:
    """The cleaned texts of a unit in their order, none of them empty, and the dropped records by reason."""
    texts: list[str] = []
    dropped: Counter[str] = Counter()
    for record in unit.records:
        try:
            text = clean(record_text(unit.format, record, text_field))
        except BadRecordError as error:
            dropped[str(error)] += 1
            continue
        if text:
            texts.append(text)
        else:
            dropped["empty after cleaning"] += 1
    return texts, dropped


def read_texts(paths: Sequence[Path], text_field: str, dropped: Counter[str]) -> Iterator[str]:
    """All cleaned texts of all files in order; `dropped` counts the records that are none, anew in every pass."""
    dropped.clear()
    for unit in read_units(paths):
        texts, dropped_here = clean_texts(unit, text_field)
        dropped.update(dropped_here)
        yield from texts
