"""`python -m train evaluate`: every task and seed of a suite one after the other, and one table; it goes on by itself.

OUTPUT/NAME/seed-N has each fine-tuning, OUTPUT/results.json and results.md the table of what is done.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_whole
from train.errors import UserError, the_same_everywhere
from train.finetune import metrics, model_folder, results, task
from train.finetune.seeds import finetune_seeds
from train.finetune.suite import Suite, read_suite
from train.monitor.logs import log
from train.signals import StopRequest

_TABLE = "results.md"


def evaluate(
    model: Path,
    file: Path,
    data: Path,
    output: Path,
    stop: StopRequest,
    *,
    seeds: list[int] | None = None,
    skip_absent: bool = False,
) -> list[str]:
    """Fine-tune `model` on every task of the suite in `file`; the lines of the table.

    All data are read and checked first. What is finished is only read. Raises what `finetune` raises, and UserError
    where the data folder of a task is not there, unless `skip_absent` leaves such tasks out.
    """
    with the_same_everywhere():
        suite, skipped = _present(read_suite(file, model, data, output, seeds), skip_absent)
        _check(suite)
    found: dict[str, dict[str, Any]] = {}
    for number, (name, settings) in enumerate(suite.tasks.items(), start=1):
        log.info("Task %d of %d: %s", number, len(suite.tasks), name)
        found[name] = finetune_seeds(settings, suite.seeds, stop)
        lines = table(found, skipped)
        if os.environ.get("RANK", "0") == "0":
            _write(output, model, file, suite, found, skipped, lines)
    return lines


def table(found: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, Path]) -> list[str]:
    """A Markdown table: of each task the metric that decides, as mean and deviation over the seeds."""
    rows = [["task", "kind", "metric", "validation", "test", "seeds"]]
    for name, report in found.items():
        metric = report["decisive"]
        cells = [_cell(report["metrics"].get(split, {}), metric) for split in ("validation", "test")]
        rows.append([name, report["task"], metrics.name(metric), *cells, str(len(report["seeds"]))])
    rows += [[name, "", "", "not there", "", ""] for name in skipped]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"| {' | '.join(f'{cell:{w}}' for cell, w in zip(row, widths, strict=True))} |" for row in rows]
    return [lines[0], f"|{'|'.join('-' * (width + 2) for width in widths)}|", *lines[1:]]


def _cell(by_metric: Mapping[str, Mapping[str, Any]], metric: str) -> str:
    if metric not in by_metric:
        return ""
    mean, deviation = (by_metric[metric][name] for name in ("mean", "deviation"))
    spread = "" if deviation is None else f" ± {metrics.value(metric, deviation)}"
    return f"{metrics.value(metric, mean)}{spread}"


def _present(suite: Suite, skip_absent: bool) -> tuple[Suite, dict[str, Path]]:
    absent = suite.absent()
    words = ", ".join(f"{name} ({folder})" for name, folder in absent.items())
    if absent and not skip_absent:
        raise UserError(f"no data for {words}: give their place with --data, or leave them out with --skip-absent")
    if len(absent) == len(suite.tasks):
        raise UserError(f"no data for any task: {words}; give their place with --data")
    if absent:
        log.warning("Left out, because their data are not there: %s.", words)
    return suite.without(absent), absent


def _check(suite: Suite) -> None:
    """Read all data before anything is trained: a mistake in the last task should not wait for the others."""
    for name, settings in suite.tasks.items():
        if all((settings.output / f"seed-{seed}" / results.RESULTS).is_file() for seed in suite.seeds):
            continue  # read again where the results are
        prepared = task.module(settings.task).prepare(replace(settings, output=settings.output.absolute()))
        rows = ", ".join(f"{count:,} {split}" for split, count in prepared.rows.items())
        log.info("Checked %s: %s rows.", name, rows)


def _write(
    output: Path,
    model: Path,
    file: Path,
    suite: Suite,
    found: Mapping[str, Mapping[str, Any]],
    skipped: Mapping[str, Path],
    lines: list[str],
) -> None:
    report = {
        "suite": {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()},
        "model": model_folder.identity(model),
        "seeds": list(suite.seeds),
        "tasks": {name: {key: value for key, value in each.items() if key != "model"} for name, each in found.items()},
        "not_there": sorted(skipped),
        "to_do": [name for name in suite.tasks if name not in found],
        "versions": results.versions(),
    }
    results.write_json(output / results.RESULTS, report)
    head = [f"# {model} on {file.stem}", "", f"Mean ± deviation over the seeds {', '.join(map(str, suite.seeds))}.", ""]
    write_whole(output / _TABLE, ("\n".join([*head, *lines]) + "\n").encode())
