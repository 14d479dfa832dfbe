"""Pairs of sentences that are translations of each other: two files line by line, or rows with two columns."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline import hub
from train.errors import DataError, UserError
from train.finetune.rows import FORMATS, Row, read_rows
from train.finetune.text_files import read_bytes, read_lines


@dataclass(frozen=True, slots=True)
class Languages:
    """The names of source and target: ends of file names, or names of columns."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class SentencePair:
    """A sentence and its translation; `place` names it to a person."""

    place: str
    source: str
    target: str


def read_pairs(origin: str, languages: Languages, repair: bool) -> tuple[list[SentencePair], int]:
    """All pairs in order, and how many were left out because a side is empty (with `repair`; else a DataError).

    `origin` is PREFIX of PREFIX.en and PREFIX.zh, or a file or data set of rows with the columns of the two languages,
    alone or in "translation". Raises UserError where there is no such file, DataError where the files do not fit.
    """
    pairs = list(_of_rows(origin, languages) if _has_rows(origin) else _of_files(origin, languages))
    whole = [pair for pair in pairs if pair.source.strip() and pair.target.strip()]
    if not whole:
        raise DataError(f"{origin}: no pair in it that has text on both sides")
    if len(whole) < len(pairs) and not repair:
        raise DataError(_empty_in_words(pairs, languages))
    return whole, len(pairs) - len(whole)


def files(origin: str, languages: Languages) -> list[Path]:
    """The two files of a PREFIX; none where the pairs are rows."""
    return (
        [] if _has_rows(origin) else [Path(f"{origin}.{language}") for language in (languages.source, languages.target)]
    )


def identity(origin: str, languages: Languages, rows: int) -> dict[str, Any]:
    """What tells the two files of a PREFIX from others: the sha256 of both, one after the other."""
    sums = {path.name: hashlib.sha256(read_bytes(path)).hexdigest() for path in files(origin, languages)}
    return {"source": origin, "sha256": sums, "rows": rows}


def _has_rows(origin: str) -> bool:
    name = Path(origin).name.lower().removesuffix(".gz").removesuffix(".zst")
    return hub.parse(origin) is not None or name.endswith(FORMATS)


def _of_files(prefix: str, languages: Languages) -> Iterator[SentencePair]:
    paths = files(prefix, languages)
    for path, language in zip(paths, (languages.source, languages.target), strict=True):
        if not path.is_file() and prefix.endswith(f".{language}") and Path(prefix).is_file():
            raise UserError(f"{prefix}: give what both files have in common: {prefix.removesuffix(f'.{language}')}")
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; give PREFIX of PREFIX.{languages.source} and PREFIX.{languages.target}, or a "
                f"file of rows ({', '.join(FORMATS)})"
            )
    sides = [read_lines(path) for path in paths]
    if len(sides[0]) != len(sides[1]):
        counts = " and ".join(f"{path} has {len(lines):,} lines" for path, lines in zip(paths, sides, strict=True))
        raise DataError(f"{counts}: line by line one must be the translation of the other")
    for number, (source, target) in enumerate(zip(*sides, strict=True), start=1):
        yield SentencePair(f"{prefix}:{number}", source, target)


def _of_rows(origin: str, languages: Languages) -> Iterator[SentencePair]:
    for row in read_rows(origin):
        fields = row.fields.get("translation", row.fields)
        if not isinstance(fields, dict):
            raise DataError(f'{row.place}: "translation" holds no object with the two languages')
        yield SentencePair(row.place, *(_text(row, fields, name) for name in (languages.source, languages.target)))


def _text(row: Row, fields: Mapping[str, Any], language: str) -> str:
    value = fields.get(language)
    if value is None and language in fields:
        return ""
    if not isinstance(value, str):
        there = f"there are {', '.join(map(str, fields))}" if language not in fields else "it is no text"
        raise DataError(f"{row.place}: no column {language!r} with a sentence ({there}); columns are named by language")
    return value


def _empty_in_words(pairs: Sequence[SentencePair], languages: Languages) -> str:
    sources = [pair.place for pair in pairs if not pair.source.strip()]
    targets = [pair.place for pair in pairs if not pair.target.strip()]
    first = next(pair.place for pair in pairs if not (pair.source.strip() and pair.target.strip()))
    return (
        f"{first}: a side is empty; so with {len(sources):,} of {len(pairs):,} lines in {languages.source} and "
        f"{len(targets):,} in {languages.target}: --repair leaves such pairs out"
    )
