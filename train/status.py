"""`python -m train status RUN`: one screen on a run: alive or not, step, loss, speed, time left, what went wrong last.

It only reads, so it may be asked at any time, on any machine that sees the folder.
"""

from __future__ import annotations

import fcntl
import json
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from train.checkpoint_folder import MANIFEST, committed, named
from train.config import Config
from train.config_file import load_config
from train.errors import UserError
from train.monitor import events
from train.monitor.goodput import PARTS
from train.monitor.metrics import each_record
from train.monitor.progress import duration
from train.ownership import OWNER

_LATE = 5  # times the usual seconds between two records, after which a run elsewhere is said to be silent
_AT_LEAST = 60.0  # seconds
_PART, _SHARE = "grad_norm_", "_target_share"

Record = Mapping[str, Any]


def status(run: Path) -> Iterator[str]:
    """The lines of the screen. Raises UserError where `run` is no run folder."""
    yield from (f"{name:<12}{words}" for name, words in told(run).items())


def told(run: Path) -> dict[str, str]:
    """The words of each line under its name. Raises UserError where `run` is no run folder."""
    config = config_of(run)
    records = _records(run / "metrics.jsonl")
    lines = {"run": f"{run}: {config.objective.name}, {config.model.encoder.model_type}, {config.run.steps:,} steps"}
    lines["process"] = _process(run, config, records)
    if records:
        lines |= {"step": _step(config, records[-1]), "loss": _loss(records), "speed": _speed(config, records)}
        lines |= {"gradient": _gradient(records[-1]), "data": _data(records[-1])}
    lines |= {"goodput": _goodput(run), "checkpoint": _checkpoint(run), "incidents": _incidents(run)}
    return {name: words for name, words in lines.items() if words}


def config_of(run: Path) -> Config:
    """What a run folder was made with. Raises UserError where `run` is none."""
    if not (run / "config.yaml").exists():
        raise UserError(f"{run}: no run folder (it has no config.yaml)")
    return load_config(run / "config.yaml")


def _records(path: Path) -> list[dict[str, Any]]:
    """Those of validations, and the last one; before the first step there may be a record that has probes alone."""
    kept: list[dict[str, Any]] = []
    last = None
    for last in (record for record in each_record(path) if "loss" in record):
        if "validation_loss" in last:
            kept.append(last)
    return kept if last is None or kept[-1:] == [last] else [*kept, last]


def _process(run: Path, config: Config, records: list[dict[str, Any]]) -> str:
    """Whether it trains: by its lock on the machine it is on, elsewhere by the age of what it wrote last."""
    owner = read_object(run / OWNER)
    who = f"process {owner.get('process')} on {owner.get('host')} since {owner.get('since')}" if owner else "a process"
    age = _age(run / "metrics.jsonl")
    last = "no step yet" if age is None or not records else f"last record {duration(age)} ago"
    if _is_locked(run):
        return f"alive: {who}; {last}"
    if owner.get("host") in (None, socket.gethostname()):
        return f"not running ({last}): {_way_on(run, config, records)}"
    usual = _LATE * config.logging.interval_steps * (records[-1]["step_seconds"] if records else 0.0)
    if age is not None and age < max(_AT_LEAST, usual):
        return f"seems alive: {who}; {last}"
    return f"silent: {who}, another machine, whose processes cannot be seen from here; {last}"


def _way_on(run: Path, config: Config, records: list[dict[str, Any]]) -> str:
    if records and records[-1]["step"] >= config.run.steps:
        return "all steps are done"
    return f"the command that started it goes on, or: python -m train pretrain {run}/config.yaml"


def _is_locked(run: Path) -> bool:
    try:
        with (run / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _step(config: Config, last: Record) -> str:
    done = last["step"] / config.run.steps
    epochs = [f"{name.replace('_', ' ')} {value:.2f}" for name, value in last.items() if name.startswith("epoch")]
    return ", ".join(
        [f"{last['step']:,} of {config.run.steps:,} ({done:.0%}), {last['tokens_seen']:,} tokens", *epochs]
    )


def _loss(records: list[dict[str, Any]]) -> str:
    words = f"{_number(records[-1]['loss'])}"
    if measured := [record for record in records if record.get("validation_loss") is not None]:
        best = min(measured, key=lambda record: record["validation_loss"])
        words += f"; held out {measured[-1]['validation_loss']:.4f} at step {measured[-1]['step']:,}"
        words += f", lowest {best['validation_loss']:.4f} at step {best['step']:,}"
    return words


def _speed(config: Config, records: list[dict[str, Any]]) -> str:
    last = records[-1]
    left = (config.run.steps - last["step"]) * last["step_seconds"]
    words = f"{last['tokens_per_second']:,.0f} tokens/s, {last['step_seconds']:.3g} s a step"
    return f"{words}, {duration(left)} left" if left > 0 else words


def _gradient(last: Record) -> str:
    """Its norm before clipping; that of each part is measured in the last step of a log interval."""
    if "grad_norm" not in last:
        return ""
    words = f"norm {_number(last['grad_norm'])}"
    parts = {name.removeprefix(_PART): value for name, value in last.items() if name.startswith(_PART)}
    return f"{words} ({', '.join(f'{part} {_number(value)}' for part, value in parts.items())})" if parts else words


def _data(last: Record) -> str:
    """What each head predicts of the tokens, the room that no token takes, what could not be read."""
    masks = {name.removesuffix(_SHARE): value for name, value in last.items() if name.endswith(_SHARE)}
    words = [f"{head} predicts {value:.1%} of the tokens" for head, value in masks.items()]
    if "padding_share" in last:
        words.append(f"{last['padding_share']:.2%} padding")
    if last.get("damaged_rows") or last.get("damaged_blocks"):
        blocks = "1 block" if last["damaged_blocks"] == 1 else f"{last['damaged_blocks']:,.0f} blocks"
        words.append(f"{blocks} could not be read since this start, {last['damaged_rows']:,.0f} rows of the whole run")
    return ", ".join(words)


def _goodput(run: Path) -> str:
    account = read_object(run / "goodput.json")
    seconds = account.get("seconds", {})
    total = sum(seconds.values())
    if not total:
        return ""
    parts = ", ".join(
        f"{part.replace('_', ' ')} {duration(seconds[part])}" for part in PARTS if seconds.get(part, 0) >= 1
    )
    starts = "1 start" if account["starts"] == 1 else f"{account['starts']} starts"
    return f"{seconds['steps'] / total:.1%} of {duration(total)} over {starts}: {parts}"


def _checkpoint(run: Path) -> str:
    folder = run / "checkpoints"
    whole = sorted(path for path in committed(folder) if (path / MANIFEST).exists()) if folder.exists() else []
    if not whole:
        return "none"
    age = _age(whole[-1] / MANIFEST) or 0.0
    words = f"{whole[-1].name}, {duration(age)} ago; {len(whole)} kept"
    return f"{words}, best {best}" if (best := named(folder, "best")) else words


def _incidents(run: Path) -> str:
    found = events.of_run(run)
    if not found:
        return "none"
    kinds = ", ".join(f"{count} x {kind}" for kind, count in Counter(record["kind"] for record in found).items())
    last = found[-1]
    return f"{kinds}; the last at step {last['step']:,} ({last.get('time', '?')}): {events.sentence(last)}"


def _number(value: float | None) -> str:
    """metrics.jsonl has null for what is no number."""
    return "not finite" if value is None else f"{value:.4f}"


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def read_object(path: Path) -> dict[str, Any]:
    """An object of a JSON file, empty where there is none that can be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
