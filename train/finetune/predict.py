"""`python -m train predict`: a fine-tuned folder and texts, in; JSON lines, out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from train.errors import DataError, UserError
from train.finetune import model_folder, results
from train.finetune.rows import Row, read_rows, text_of
from train.finetune.settings import TASKS
from train.finetune.task import module
from train.finetune.text_files import read_lines
from train.model.quiet import quiet

# Folders of others say what they are by their class.
_BY_CLASS = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "ner",
    "ForQuestionAnswering": "qa",
    "EncoderDecoderModel": "translation",
}


def predict(folder: Path, texts: Sequence[str], files: Sequence[str], batch_size: int) -> Iterator[dict[str, Any]]:
    """One JSON-like object for each input, in order: texts of the command line, then the rows of files.

    A task of two texts takes the texts two by two. Raises UserError and DataError.
    """
    saved = task_of(folder)
    task = saved["task"]
    names = input_names(saved)
    rows = _of_texts(texts, names)
    for file in files:
        rows += _of_file(file, names, saved)
    if not rows:
        raise UserError(f"nothing to predict: give {' and '.join(names)}, or --input FILE")
    with quiet():
        yield from module(task).predict(folder, rows, saved, batch_size)


def task_of(folder: Path) -> dict[str, Any]:
    """task.json of a folder that `finetune` wrote, or the task by the class of its model. Raises UserError."""
    if (folder / results.SETTINGS).exists() and not (folder / results.RESULTS).exists():
        raise UserError(f"--model {folder}: its fine-tuning has not ended; the same command goes on")
    config = model_folder.open_config(folder)
    try:
        saved: dict[str, Any] = json.loads((folder / results.TASK).read_bytes())
        if saved["task"] in TASKS:
            return saved
    except (OSError, ValueError, KeyError, TypeError):
        pass
    classes = config.architectures or ["?"]
    for end, task in _BY_CLASS.items():
        if task in TASKS and classes[0].endswith(end):
            return {"task": task}
    raise UserError(f"--model {folder}: a {classes[0]}, not fine-tuned for {', '.join(TASKS)}")


def input_names(saved: dict[str, Any]) -> tuple[str, ...]:
    """The texts that one prediction takes; those in brackets only where the model was trained with them."""
    names = TASKS[saved["task"]].inputs
    return tuple(name.strip("[]") for name in names if not name.startswith("[") or saved.get("pair"))


def _of_texts(texts: Sequence[str], names: Sequence[str]) -> list[Row]:
    count = len(names)
    if len(texts) % count:
        raise UserError(f"{len(texts)} texts: this model takes them {count} by {count}: {', '.join(names)}")
    groups = [texts[start : start + count] for start in range(0, len(texts), count)]
    return [Row(f"text {number}", dict(zip(names, group, strict=True))) for number, group in enumerate(groups, start=1)]


def _of_file(file: str, names: Sequence[str], saved: dict[str, Any]) -> list[Row]:
    """Rows by the names of the inputs, or by those of the training data; a .txt file has a text a line."""
    own = getattr(module(saved["task"]), "read_inputs", None)  # a format that is the task's own
    if own is not None and (found := own(file)) is not None:
        return list(found)
    if file.lower().removesuffix(".gz").removesuffix(".zst").endswith(".txt"):
        if len(names) > 1:
            raise UserError(f"--input {file}: this model takes {' and '.join(names)}: give .jsonl or .csv")
        lines = enumerate(read_lines(Path(file)), start=1)
        return [Row(f"{file}:{number}", {names[0]: line}) for number, line in lines if line.strip()]
    columns = saved.get("columns", {})
    rows = read_rows(file)
    chosen = {name: name if name in rows[0].fields else columns.get(name, name) for name in names}
    for name, column in chosen.items():
        if column not in rows[0].fields:
            raise DataError(f"{rows[0].place}: no column {name!r} (there are {', '.join(rows[0].fields)})")
    return [Row(row.place, {name: text_of(row, column) for name, column in chosen.items()}) for row in rows]
