"""Rows of fine-tuning data with their places, from JSON lines, JSON, CSV, TSV, Parquet, Arrow and `datasets`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data_pipeline import hub
from train.errors import DataError, UserError
from train.finetune.settings import Settings
from train.finetune.text_files import read_bytes, read_lines, read_text

FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
_COMPRESSED = (".gz", ".zst")
_Checked = TypeVar("_Checked")


class Row(NamedTuple):
    """One row: `place` names it to a person ("train.jsonl:17"), `fields` are its columns."""

    place: str
    fields: dict[str, Any]


def read_rows(source: str) -> list[Row]:
    """All rows of a file or of "datasets:NAME[@CONFIG][#SPLIT]", in order.

    Raises UserError where the source is not there or of no known kind, DataError with its place for a row that cannot
    be read, and where there is no row at all.
    """
    dataset = hub.parse(source)
    rows = list(_dataset_rows(dataset) if dataset else _reader(Path(source))(Path(source)))
    if not rows:
        raise DataError(f"{source}: no rows")
    return rows


def read_splits(settings: Settings) -> dict[str, list[Row]]:
    """The rows of "train", "validation" and, where one is given, "test". Raises what `read_rows` raises."""
    sources = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    return {split: read_rows(source) for split, source in sources.items() if source}


def usable(
    rows: Sequence[Row], check: Callable[[Row], _Checked], *, repair: bool, left_out: dict[str, int], split: str
) -> list[tuple[str, _Checked]]:
    """(place, what `check` makes of a row) of each. The first DataError of `check` ends it, or with `repair` is counted
    in `left_out[split]`. Raises DataError where no row is left.
    """
    found = []
    for row in rows:
        try:
            found.append((row.place, check(row)))
        except DataError:
            if not repair:
                raise
            left_out[split] = left_out.get(split, 0) + 1
    if not found:
        raise DataError(f"{rows[0].place}: no row of this file can be used")
    return found


def identity(source: str, rows: int) -> dict[str, Any]:
    """What tells this data from other data: {"source", "sha256" of the file or "fingerprint" of a data set, "rows"}."""
    dataset = hub.parse(source)
    if dataset:
        return {"source": source, "fingerprint": hub.describe(dataset)[1], "rows": rows}
    try:
        with Path(source).open("rb") as file:
            return {"source": source, "sha256": hashlib.file_digest(file, "sha256").hexdigest(), "rows": rows}
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from error


def chosen_column(rows: Sequence[Row], given: str | None, usual: Iterable[str], what: str, option: str) -> str:
    """The column that is given, or the first usual one that the first row has. Raises UserError where none is there."""
    columns = rows[0].fields
    for name in [given] if given else usual:
        if name in columns:
            return name
    wanted = f"{given!r}" if given else f"for the {what}"
    raise UserError(f"{rows[0].place}: no column {wanted}: name it with {option} (there are {', '.join(columns)})")


def text_of(row: Row, column: str) -> str:
    """A column that must hold text. Raises DataError with the row's place."""
    value = row.fields.get(column)
    if not isinstance(value, str):
        there = "is missing" if value is None else f"is {json.dumps(value, default=str)[:40]}"
        raise DataError(f"{row.place}: {column!r} {there}, not a text")
    return value


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    name = path.name.lower()
    for compression in ("", *_COMPRESSED):
        for kind, reader in _READERS.items():
            if name.endswith(kind + compression):
                return reader
    if not path.exists():
        raise UserError(f"{path}: no such file")
    raise UserError(f"{path}: not a kind of file that is known: {', '.join(FORMATS)}, the first four also .gz or .zst")


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield Row(f"{path}:{number}", _object(line, f"{path}:{number}"))


def _object(text: str, place: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise DataError(f"{place}: not a JSON object with named columns")
    return value


def _json_array(path: Path) -> Iterator[Row]:
    """An array of objects; a file with an object a line is read as such, whatever its name."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from _json_lines(path)
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}: element {number}: not a JSON object with named columns")
        yield Row(f"{path}: element {number}", row)


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """The first line names the columns. The place of a row is its first line."""
    text = read_text(path)
    csv.field_size_limit(max(len(text), csv.field_size_limit()))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    before = 0
    try:
        for values in reader:
            place, before = f"{path}:{before + 1}", reader.line_num
            if not values:
                continue
            if header is None:
                header = _header(values, place)
            elif len(values) != len(header):
                raise DataError(f"{place}: {len(values)} values for {len(header)} columns")
            else:
                yield Row(place, dict(zip(header, values, strict=True)))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not CSV ({error})") from error


def _header(names: list[str], place: str) -> list[str]:
    if len(set(names)) < len(names):
        raise DataError(f"{place}: two columns have one name; the first line must name the columns")
    return names


def _tsv(path: Path) -> Iterator[Row]:
    """Quotation marks mean nothing in the TSV files of GLUE."""
    header: list[str] | None = None
    for number, line in enumerate(read_lines(path), start=1):
        values, place = line.split("\t"), f"{path}:{number}"
        if header is None:
            header = _header(values, place)
        elif line and len(values) != len(header):
            raise DataError(f"{place}: {len(values)} values for {len(header)} columns")
        elif line:
            yield Row(place, dict(zip(header, values, strict=True)))


def _columnar(path: Path) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import ipc, parquet

    content = pyarrow.BufferReader(read_bytes(path))
    try:
        if path.suffix == ".parquet":
            table = parquet.read_table(content)
        else:
            try:
                table = ipc.open_file(content).read_all()
            except pyarrow.ArrowInvalid:
                table = ipc.open_stream(read_bytes(path)).read_all()
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from error
    for number, row in enumerate(rows, start=1):
        yield Row(f"{path}: row {number}", row)


def _dataset_rows(dataset: hub.Dataset) -> Iterator[Row]:
    for number, row in enumerate(hub.whole_rows(dataset), start=1):
        yield Row(f"{dataset}: row {number}", row)


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".json": _json_array,
    ".csv": _csv,
    ".tsv": _tsv,
    ".parquet": _columnar,
    ".arrow": _columnar,
}
