"""What a fine-tuning leaves in its folder: settings.json (what it is), results.json (how it ended), predictions."""

from __future__ import annotations

import fcntl
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from data_pipeline.durable import write_whole
from train.errors import UserError
from train.finetune import metrics, model_folder, rows
from train.finetune.settings import Settings
from train.finetune.task import Task

SETTINGS, RESULTS, TASK = "settings.json", "results.json", "task.json"
_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "scikit-learn", "seqeval", "sacrebleu", "scipy")
# How the work is laid out, and where: the same fine-tuning with another value.
_FREE = ("output", "micro_batch_size", "deepspeed", "model", "train", "validation", "test")


def describe(settings: Settings, task: Task) -> dict[str, Any]:
    """What makes this fine-tuning another than others: settings, and the contents of model and data."""
    sources = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    data = {split: rows.identity(source, task.rows[split]) for split, source in sources.items() if source}
    return {"settings": settings.as_json(), "model": model_folder.identity(settings.model), "data": data}


def finished(output: Path, what: Mapping[str, Any]) -> dict[str, Any] | None:
    """The results of this fine-tuning where the folder has them, None where it goes on or begins there.

    Raises UserError where the folder holds anything else.
    """
    if not output.exists():
        return None
    try:
        before = json.loads((output / SETTINGS).read_bytes())
        changed = _difference(before, what)
    except FileNotFoundError:
        if output.is_dir() and not [path for path in output.iterdir() if path.name != ".lock"]:
            return None
        raise UserError(f"{output}: already there, and no fine-tuning of ours; give another --output") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{output / SETTINGS}: cannot be read ({error}); give another --output") from error
    if changed:
        raise UserError(f"{output}: holds a fine-tuning with {changed}; give another --output")
    if not (output / RESULTS).is_file():
        return None
    results: dict[str, Any] = json.loads((output / RESULTS).read_bytes())
    return results


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first difference in words; "" where there is none that matters."""
    old, new = before["settings"], json.loads(json.dumps(now["settings"]))
    for name in [name for name in new if name not in _FREE]:
        if old.get(name) != new[name]:
            return f"{name} {old.get(name)}, not {new[name]}"
    if before["model"]["sha256"] != now["model"]["sha256"]:
        return f"another model than {now['model']['folder']}"
    for split in sorted(before["data"].keys() | now["data"].keys()):
        contents = [
            {name: value for name, value in data.get(split, {}).items() if name != "source"}
            for data in (before["data"], now["data"])
        ]
        if contents[0] != contents[1]:
            return f"other {split} data"
    return ""


def hold(output: Path, what: Mapping[str, Any]) -> IO[str]:
    """Make the folder, keep it for this process, write down what will be in it.

    Raises UserError where it cannot be written, or another process works there.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock = (output / ".lock").open("w")
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror}); give another --output") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_json(output / SETTINGS, what)
    except OSError as error:
        lock.close()
        reason = "another process works in this folder; wait" if isinstance(error, BlockingIOError) else error.strerror
        raise UserError(f"{output}: {reason}, or give another --output") from error
    except UserError:
        lock.close()
        raise
    return lock


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    write_whole(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode())


def write_predictions(output: Path, split: str, predictions: Sequence[Mapping[str, Any]]) -> None:
    """predictions-SPLIT.jsonl, a line for each row of the file."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in predictions]
    write_whole(output / f"predictions-{split}.jsonl", "".join(lines).encode())


def versions() -> dict[str, str]:
    """Of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def over_seeds(results: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """{split: {metric: {"mean", "deviation" (of the sample; None for one seed), "values"}}} of several seeds."""
    splits = next(iter(results.values()))["metrics"]
    return {split: {metric: _spread(results, split, metric) for metric in splits[split]} for split in splits}


def _spread(results: Mapping[int, Mapping[str, Any]], split: str, metric: str) -> dict[str, Any]:
    values = [result["metrics"][split].get(metric, 0.0) for result in results.values()]
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "deviation": deviation, "values": values}


def table(spread: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Lines of a table: a row for each split and metric, with mean and deviation where there are several seeds."""
    cells = [
        (split, metrics.name(metric), _mean_in_words(metric, found))
        for split, by_metric in spread.items()
        for metric, found in by_metric.items()
        if metrics.shown(metric)
    ]
    widths = [max(len(cell[column]) for cell in cells) for column in range(2)]
    return [f"{split:{widths[0]}}  {metric:{widths[1]}}  {words}" for split, metric, words in cells]


def _mean_in_words(metric: str, found: Mapping[str, Any]) -> str:
    mean = metrics.value(metric, found["mean"])
    if found["deviation"] is None:
        return mean
    each = ", ".join(metrics.value(metric, number) for number in found["values"])
    return f"{mean} ± {metrics.value(metric, found['deviation'])}  ({each})"
