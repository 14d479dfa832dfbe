"""Folders of files that exist whole or not at all: written under a temporary name, fsynced, renamed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from data_pipeline.durable import fsync_folder
from train.errors import UserError


def refuse_used(output: Path) -> None:
    """Raise UserError where something that would be lost has the name of a folder to be written."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"{output}: already there and not empty; give another --output")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path`, which takes its name, and the place of what was there, when the body is done.

    Raises UserError where the system refuses anything, and leaves nothing then.
    """
    partial, replaced = (path.with_name(f".{path.name}.{word}") for word in ("partial", "replaced"))
    _remove(partial, replaced)  # of a process that was killed
    try:
        partial.mkdir(parents=True)
        yield partial
        _sync(partial)
        if path.exists():
            path.rename(replaced)
        partial.rename(path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from error
    finally:
        _remove(partial, replaced)


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    fsync_folder(folder)
