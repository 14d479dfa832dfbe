"""A suite file: several fine-tunings of one model, described in YAML.

seeds: [1, 2, 3]
settings: {epochs: 3}            # of every task: what `finetune` takes, with underscores
tasks:
  sst2:
    task: classification         # as on the command line of `finetune`, and what else that task takes
    train: sst2/train.jsonl      # relative to the data folder of the command line
    validation: sst2/dev.jsonl
    test: sst2/test.jsonl
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from data_pipeline import hub
from train.config_file import read_yaml
from train.errors import UserError
from train.finetune.settings import Settings, settings_for

_TOP = ("seeds", "settings", "tasks")
_FROM_COMMAND = ("model", "output", "seed")
_SPLITS = ("train", "validation", "test")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Suite:
    """Checked settings of every task by its name, their output folders in place; and the seeds of each."""

    tasks: Mapping[str, Settings]
    seeds: tuple[int, ...]

    def absent(self) -> dict[str, Path]:
        """The tasks of which a folder of data is not there, with that folder."""
        found: dict[str, Path] = {}
        for name, settings in self.tasks.items():
            for source in (settings.train, settings.validation, settings.test):
                if source and not hub.parse(source) and not Path(source).parent.is_dir():
                    found.setdefault(name, Path(source).parent)
        return found

    def without(self, names: Mapping[str, Any]) -> Suite:
        return replace(self, tasks={name: task for name, task in self.tasks.items() if name not in names})


def read_suite(file: Path, model: Path, data: Path, output: Path, seeds: list[int] | None = None) -> Suite:
    """The suite in `file`, for a model, with paths of data relative to `data`, each task into `output`/NAME.

    `seeds` take the place of the file's. Raises UserError with the place of the first mistake.
    """
    tree = read_yaml(file)
    if not isinstance(tree, dict) or not isinstance(tree.get("tasks"), dict) or not tree["tasks"]:
        raise UserError(f"{file}: a suite has tasks: with a name for each; configs/suites/ has examples")
    for key in tree:
        if key not in _TOP:
            raise UserError(f"{file}: unknown key {key}{_hint(key)}")
    shared = tree.get("settings") or {}
    if not isinstance(shared, dict):
        raise UserError(f"{file}: settings is no mapping of names and values")
    tasks = {
        name: _task(f"{file}: {name}", name, entry, shared, model, data, output)
        for name, entry in tree["tasks"].items()
    }
    return Suite(tasks, _seeds(file, seeds if seeds is not None else tree.get("seeds", [1])))


def _task(
    place: str, name: str, entry: Any, shared: Mapping[str, Any], model: Path, data: Path, output: Path
) -> Settings:
    if not _NAME.fullmatch(name):
        raise UserError(f"{place}: a name of letters, digits, dots and dashes is needed: it names a folder")
    if not isinstance(entry, dict) or not isinstance(entry.get("task"), str):
        raise UserError(f"{place}: no task: such as classification")
    given = {**shared, **entry}
    for key in _FROM_COMMAND:
        if key in given:
            raise UserError(f"{place}: {key} comes from the command line")
    kind = given.pop("task")
    for split in _SPLITS:
        if isinstance(given.get(split), str) and not hub.parse(given[split]):
            given[split] = str(data / given[split])
    try:
        return settings_for(kind, model=model, output=output / name, **given)
    except UserError as error:
        raise UserError(f"{place}: {error}") from error
    except TypeError as error:  # a value of another type, which the command line cannot give
        raise UserError(f"{place}: a value of a wrong type ({error})") from error


def _seeds(file: Path, seeds: Any) -> tuple[int, ...]:
    right = isinstance(seeds, list) and seeds and all(type(seed) is int and 0 <= seed < 1 << 32 for seed in seeds)
    if not right or len(set(seeds)) < len(seeds):
        raise UserError(f"{file}: seeds {seeds}: a list of different whole numbers from 0 on is needed")
    return tuple(seeds)


def _hint(key: str) -> str:
    near = difflib.get_close_matches(str(key), _TOP, n=1)
    return f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(_TOP)})"
