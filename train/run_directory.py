"""The run folder: who may write in it, and whether a configuration belongs to it."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import IO, Any

from data_pipeline.durable import PARTIAL, partial_name, write_whole
from train.config import Config
from train.config_file import differences, dump_config, load_config
from train.errors import UserError

# What a run is; everything else (steps, rates, intervals, batch shape, engine) may change when it goes on.
_FIXED = (
    "run.seed",
    "data.sequence_length",
    "data.piece_length",
    "data.piece_overlap",
    "model.encoder",
    "model.decoder",
    "objective",
)


def lock(run: Path, patience: float = 30.0) -> IO[str]:
    """Create the folder and hold it for this process; the lock is gone with the process, however it ends.

    Waits `patience` seconds for a process that is just ending, as ranks do whose launcher was killed. Raises UserError
    when the folder cannot be written or another process trains in it.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        file = (run / ".lock").open("w")
    except OSError as error:
        raise UserError(f"run.directory {run}: cannot be written ({error.strerror}); give another one") from error
    try:
        _flock(file, patience)
    except BlockingIOError as error:
        file.close()
        raise UserError(
            f"{run}: another process is training in this folder; wait, or give another run.directory"
        ) from error
    except OSError as error:
        file.close()
        raise UserError(f"run.directory {run}: cannot be locked ({error.strerror}); give another one") from error
    return file


def _flock(file: IO[str], patience: float) -> None:
    deadline = time.monotonic() + patience
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def settle(
    run: Path, config: Config, ds_config: dict[str, Any], tokenizer_folder: Path, *, begun: bool = True
) -> list[str]:
    """Write config.yaml, ds_config.json and the tokenizer; the sentences tell what changed since the last start.

    A run that has not begun (no checkpoint) may change in anything. Raises UserError where the folder holds a run of
    another model, objective, seed or sequence length.
    """
    _sweep(run)
    path = run / "config.yaml"
    changes = []
    if not begun:
        shutil.rmtree(run / "tokenizer", ignore_errors=True)
    elif not path.exists():
        changes = [f"{path} is missing: what changed since the last start is not known."]
    else:
        before = _before(path)
        for key, old, new in differences(before, config, _FIXED):
            raise UserError(
                f"{run} holds a run with {key} = {old}, the configuration says {new}: "
                "give another run.directory or the old value"
            )
        changed = differences(before, config, tuple(Config.model_fields))
        changes = [f"{key} was {old} at the last start and is {new} now." for key, old, new in changed]
    write_whole(path, dump_config(config).encode())
    write_whole(run / "ds_config.json", (json.dumps(ds_config, indent=2) + "\n").encode())
    _copy_tokenizer(tokenizer_folder, run / "tokenizer")
    return changes


def _before(path: Path) -> Config:
    """The configuration of the last start. Raises UserError where it is damaged."""
    try:
        return load_config(path, [])
    except UserError as error:
        raise UserError(f"{error} (the run's own record of its last start: bring it back, or remove it)") from error


def _sweep(run: Path) -> None:
    """Remove what a process that was killed left half-written; this one holds the lock."""
    for partial in run.glob(f"*{PARTIAL}"):
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink(missing_ok=True)


def _copy_tokenizer(source: Path, target: Path) -> None:
    """The export needs the tokenizer even where the shards are gone."""
    if target.exists():
        return
    partial = partial_name(target)
    try:
        shutil.copytree(source, partial)
        partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise UserError(f"{target}: cannot copy the tokenizer ({error.strerror or error})") from error
