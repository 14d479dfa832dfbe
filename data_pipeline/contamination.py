"""Documents that share n-grams with evaluation files, which a model shall not have read before it is evaluated.

An n-gram is 13 words (Brown et al. 2020, appendix C) or, where it starts with a CJK character, 26 units. Case,
punctuation and white space make no difference.
Legend: N n-grams.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.units import Grams, Units, grams, in_batches, units
from data_pipeline.errors import DataError
from data_pipeline.formats import COMPRESSIONS, csv_fields, records
from data_pipeline.inputs import open_input
from data_pipeline.record import FileProblemError, Record

WORDS = 13
CJK_FACTOR = 2  # units of a CJK n-gram for one word
_BATCH = 1 << 12  # evaluation texts at a time
_SPARE_BITS = 3  # 8 to 16 marks for an n-gram
_LIMIT = 64 << 20  # bytes of one record of an evaluation file


class EvaluationGrams(NamedTuple):
    """The n-grams of evaluation texts, and what could not become one."""

    hashes: npt.NDArray[np.uint64]  # sorted, each once
    texts: int  # read
    short: int  # of these: without an n-gram, as they are too short, so they cannot be found


class Lookup(NamedTuple):
    """Known n-grams, with a table of the upper bits of their hashes: it settles nearly all that are not known."""

    hashes: npt.NDArray[np.uint64]  # sorted
    marks: npt.NDArray[np.bool_]
    shift: int


def evaluation_grams(texts: Iterable[str], n_words: int = WORDS) -> EvaluationGrams:
    """The n-grams of all evaluation texts."""
    parts = [np.zeros(0, np.uint64)]
    count = short = 0
    for batch in _batches(texts):
        found = _grams(batch, n_words)[1]
        parts.append(np.unique(found.hashes_N))
        count += len(batch)
        short += int(np.count_nonzero(np.diff(found.firsts_T1) == 0))
    return EvaluationGrams(np.unique(np.concatenate(parts)), count, short)


def lookup(hashes: npt.NDArray[np.uint64]) -> Lookup:
    """What `shared_grams` looks in, from sorted hashes."""
    shift = 64 - (len(hashes).bit_length() + _SPARE_BITS)
    marks = np.zeros(1 << (64 - shift), np.bool_)
    marks[hashes >> np.uint64(shift)] = True
    return Lookup(hashes, marks, shift)


def shared_grams(texts: Sequence[str], known: Lookup, n_words: int = WORDS) -> list[str]:
    """For each text its first n-gram that is known, as it stands there; "" where there is none."""
    shared = [""] * len(texts)
    for start, batch in in_batches(texts):
        found, made = _grams(batch, n_words)
        hits = _known(made.hashes_N, known)
        owners, firsts = np.unique(np.searchsorted(made.firsts_T1, hits, "right") - 1, return_index=True)
        joined = "\n".join(batch) if len(hits) else ""
        for owner, gram in zip(owners.tolist(), hits[firsts].tolist(), strict=True):
            first, last = made.starts_N[gram], made.ends_N[gram] - 1
            shared[start + owner] = joined[found.starts_U[first] : found.ends_U[last]]
    return shared


def evaluation_texts(path: Path) -> Iterator[str]:
    """The texts of an evaluation file: the strings of .json and .jsonl, the fields of .csv and .tsv, the sentences of
    .conll, the lines of any other text; also with .gz or .zst at the end.

    Raises UserError when it cannot be opened, DataError when it is damaged or no text.
    """
    compression = path.suffix.lower() if path.suffix.lower() in COMPRESSIONS[1:] else ""
    kind = Path(path.name[: len(path.name) - len(compression)]).suffix.lower()
    name = Path(("rows.csv" if kind == ".csv" else "lines.txt") + compression)  # decides how the reader cuts it
    try:
        with open_input(path) as file:
            found = records(name, file, "", "file" if kind == ".json" else "line", _LIMIT)
            yield from _TEXTS.get(kind, _lines)(_contents(found))
    except (FileProblemError, ValueError, RecursionError, csv.Error) as error:
        details = error.details if isinstance(error, FileProblemError) else str(error)
        raise DataError(f"{path}: cannot be read as an evaluation file: {details}") from error


def _contents(found: Iterable[Record]) -> Iterator[str]:
    for record in found:
        if record.reason:
            raise ValueError(f"line {record.line:,} is larger than {_LIMIT >> 20} MiB")
        yield record.content.decode("utf-8-sig")


def _lines(contents: Iterable[str]) -> Iterator[str]:
    yield from contents


def _json_strings(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        if content.strip():
            yield from _strings(json.loads(content))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _csv_fields(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        yield from csv_fields(content)


def _tsv_fields(contents: Iterable[str]) -> Iterator[str]:
    for content in contents:
        yield from content.split("\t")


def _sentences(contents: Iterable[str]) -> Iterator[str]:
    """The first columns of the lines between blank lines."""
    words: list[str] = []
    for content in contents:
        columns = content.split()
        if columns:
            words.append(columns[0])
        else:
            yield " ".join(words)
            words = []
    yield " ".join(words)


_TEXTS: dict[str, Callable[[Iterable[str]], Iterator[str]]] = {
    ".json": _json_strings,
    ".jsonl": _json_strings,
    ".csv": _csv_fields,
    ".tsv": _tsv_fields,
    ".conll": _sentences,
}


def _grams(texts: Sequence[str], n_words: int) -> tuple[Units, Grams]:
    found = units(texts)
    return found, grams(found, n_words, CJK_FACTOR * n_words)


def _known(hashes_N: npt.NDArray[np.uint64], known: Lookup) -> npt.NDArray[np.int64]:
    """Which of the hashes are known, in order."""
    likely = np.flatnonzero(known.marks[hashes_N >> np.uint64(known.shift)])
    places = np.searchsorted(known.hashes, hashes_N[likely])
    likely, places = likely[places < len(known.hashes)], places[places < len(known.hashes)]
    found: npt.NDArray[np.int64] = likely[known.hashes[places] == hashes_N[likely]]
    return found


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    remaining = iter(texts)
    while batch := list(islice(remaining, _BATCH)):
        yield batch
