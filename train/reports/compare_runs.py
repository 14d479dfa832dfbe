"""`python -m train compare-runs RUN RUN ...`: a table, a row a run, and a picture of their curves."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_whole
from train.config import Config
from train.config_file import leaves
from train.errors import UserError
from train.reports.curves import heads
from train.reports.figures import png, require_matplotlib
from train.reports.run_files import RunFiles, read_run
from train.reports.summary import LAST_STEPS, NONE, summary

_OF_THE_PLACE = "run.directory"  # no two runs have the same
_LONGEST_SETTING = 48


def compare_runs(paths: Sequence[Path], output: Path) -> Iterator[str]:
    """The lines of the tables, once the picture is in `output`: it is there also where nobody reads them to the end.

    Raises UserError for what is no run, and where the picture cannot be written.
    """
    require_matplotlib()
    _refuse(paths, output)
    runs = dict(zip(_names(paths), map(read_run, paths), strict=True))
    write_whole(output, png({name: run.columns for name, run in runs.items()}))
    every_head = list(dict.fromkeys(head for run in runs.values() for head in heads(run.columns)))
    yield from _as_table([{"run": name, **summary(run, every_head)} for name, run in runs.items()])
    yield f"training loss: {LAST_STEPS}; tokens/s and MFU: median of all steps; losses in nats."
    if len({run.config.objective.name for run in runs.values()}) > 1:
        yield "The objectives differ: their losses do not measure the same."
    yield ""
    yield from _settings(runs)
    yield ""
    yield f"Curves: {output}"


def _refuse(paths: Sequence[Path], output: Path) -> None:
    if len(paths) < 2:
        raise UserError("compare-runs: one run alone; give two or more, or: python -m train report RUN")
    seen: set[Path] = set()
    for path in paths:
        if path.resolve() in seen:
            raise UserError(f"{path}: given twice; each run once")
        seen.add(path.resolve())
    if output.suffix.lower() != ".png":
        raise UserError(f"{output}: the curves are written as PNG; give a name that ends with .png")


def _names(paths: Sequence[Path]) -> list[str]:
    """Where each run lies in the folder that has all of them."""
    whole = [path.resolve() for path in paths]
    common = os.path.commonpath(whole)
    return [str(path.relative_to(common)) if str(path) != common else path.name for path in whole]


def _settings(runs: Mapping[str, RunFiles]) -> Iterator[str]:
    found = differing_settings([run.config for run in runs.values()])
    if not found:
        yield f"The runs have the same settings, {_OF_THE_PLACE} apart."
        return
    rows = [
        {"setting that differs": key, **dict(zip(runs, map(_shown, values), strict=True))}
        for key, values in found.items()
    ]
    yield from _as_table(rows)


def differing_settings(configs: Sequence[Config]) -> dict[str, list[Any]]:
    """The value in each configuration of every dotted key in which they differ, in the order of the fields."""
    fields = [dict(leaves(config.model_dump())) for config in configs]
    values = {key: [each[key] for each in fields] for key in fields[0] if key != _OF_THE_PLACE}
    return {key: found for key, found in values.items() if any(value != found[0] for value in found)}


def _shown(value: Any) -> str:
    words = NONE if value is None else str(value)
    return words if len(words) <= _LONGEST_SETTING else f"...{words[3 - _LONGEST_SETTING :]}"


def _as_table(rows: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Columns that no row has anything in are left out; the first is flush left, the others right."""
    every = dict.fromkeys(name for row in rows for name in row)
    names = [name for name in every if any(row.get(name, NONE) != NONE for row in rows)]
    cells = [names, *([row.get(name, NONE) for name in names] for row in rows)]
    widths = [max(_width(line[i]) for line in cells) for i in range(len(names))]
    for line in cells:
        rooms = [" " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True)]
        yield "  ".join([line[0] + rooms[0], *(room + cell for room, cell in zip(rooms[1:], line[1:], strict=True))])


def _width(text: str) -> int:
    """Places that a text takes in a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)
