"""Checkpoint folders: written whole or not at all, verified before they are used.

    checkpoints/step-00001000/   model.safetensors exp_avg.safetensors exp_avg_sq.safetensors  fp32, by parameter name
                                 state.json         step, data cursor, counters
                                 manifest.json      size and checksum of every other file; written last
    checkpoints/latest           name of the newest one

Tensors are whole and named, so that a checkpoint knows nothing of ranks, ZeRO stages or micro-batches.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_pipeline.durable import fsync_folder, write_whole
from train.errors import CheckpointError, UserError

_MANIFEST = "manifest.json"
_STATE = "state.json"
_FORMAT, _VERSION = "bertmae-checkpoint", 1
_NAME = re.compile(r"step-\d{8,}")
_READ_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    folder: Path, step: int, tables: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any], keep_last: int
) -> Path:
    """Commit `folder`/step-NNNNNNNN: temporary name, fsync, manifest, rename, then `latest`; then prune older ones.

    Raises CheckpointError where the disk refuses; what was there before is untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
        _sweep(folder)
        partial.mkdir()
        _write_files(partial, tables, {"step": step, **state})
        _replace(partial, final)
        write_whole(folder / "latest", f"{final.name}\n".encode())
        _prune(folder, final, keep_last)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{final}: cannot write the checkpoint: {reason}; make room or change the permission and start again"
        ) from error
    return final


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged or missing."""
    problems: list[str] = []
    for path in sorted(_committed(folder), reverse=True):
        problem = verify(path)
        if problem is None:
            return Checkpoint(path, _read_json(path / _STATE)), problems + _missing_latest(folder, path)
        problems.append(f"{path}: {problem}")
    return None, problems


def resume_point(folder: Path, steps_done: int) -> tuple[Checkpoint | None, list[str]]:
    """Where a run goes on: its newest whole checkpoint, or None for a run that never began.

    A run commits a checkpoint before its first step. So where metrics or the folder speak of an earlier start and no
    checkpoint is whole, something was lost: CheckpointError, never a silent start from zero.
    """
    checkpoint, problems = newest_whole(folder)
    if checkpoint is None and (problems or steps_done or (folder / "latest").exists()):
        found = "; ".join(problems) or f"{folder} has none"
        raise CheckpointError(
            f"no whole checkpoint to go on from, though the run reached step {steps_done}: {found}; "
            "bring one back, or give another run.directory to begin anew"
        )
    return checkpoint, problems


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is there with its size and checksum."""
    try:
        manifest = _read_json(path / _MANIFEST)
        if (manifest["format"], manifest["version"]) != (_FORMAT, _VERSION):
            return f"{_MANIFEST} says {manifest['format']} version {manifest['version']}, not {_FORMAT} {_VERSION}"
        for name, expected in manifest["files"].items():
            size = (path / name).stat().st_size
            if size != expected["bytes"]:
                return f"{name} has {size} bytes instead of {expected['bytes']}"
            if _checksum(path / name) != expected["checksum"]:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_MANIFEST} is damaged ({type(error).__name__}: {error})"
    return None


def read_table(path: Path, table: str) -> dict[str, torch.Tensor]:
    """The tensors of one table of a checkpoint, by parameter name, in host memory."""
    try:
        with safe_open(path / f"{table}.safetensors", framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}/{table}.safetensors: cannot be read ({error})") from error


def load_weights(module: torch.nn.Module, path: Path) -> None:
    """Copy a checkpoint's weights into a module of the same shape. Raises CheckpointError naming what does not fit."""
    weights = read_table(path, "model")
    parameters = dict(module.named_parameters())
    for name in parameters.keys() ^ weights.keys():
        where = "the checkpoint" if name in parameters else "the model"
        raise CheckpointError(f"{path}: parameter {name} is missing in {where}: another architecture")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != weights[name].shape:
                shapes = f"{list(weights[name].shape)} there, {list(parameter.shape)} here"
                raise CheckpointError(f"{path}: parameter {name} has another shape: {shapes}")
            parameter.copy_(weights[name])


def _write_files(folder: Path, tables: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    for table, tensors in tables.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{table}.safetensors")
    (folder / _STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    files = {}
    for path in sorted(folder.iterdir()):
        _fsync(path)
        files[path.name] = {"bytes": path.stat().st_size, "checksum": _checksum(path)}
    manifest = {"format": _FORMAT, "version": _VERSION, "files": files}
    write_whole(folder / _MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _replace(partial: Path, final: Path) -> None:
    """Rename; a damaged folder of that name (nothing else can be there) makes way."""
    if final.exists():
        aside = final.with_name(f".{final.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        shutil.rmtree(aside)
    partial.rename(final)
    fsync_folder(final.parent)


def _sweep(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed: of another step, nothing else would."""
    for path in [*folder.glob(".step-*.partial"), *folder.glob(".step-*.damaged")]:
        shutil.rmtree(path)


def _prune(folder: Path, written: Path, keep_last: int) -> None:
    # Folders of later steps are damaged, or the run would have gone on from there: they count for nothing.
    candidates = sorted(path for path in _committed(folder) if path.name <= written.name)
    for path in candidates[:-keep_last]:
        # The manifest goes first: a folder that is half deleted is never taken for a checkpoint.
        (path / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def _committed(folder: Path) -> Iterator[Path]:
    """Folders with a checkpoint's name; copies that people made under other names are theirs."""
    return (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def _missing_latest(folder: Path, chosen: Path) -> list[str]:
    """A sentence where `latest` names a folder newer than the chosen one that is not there at all."""
    try:
        name = (folder / "latest").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return []
    gone = name > chosen.name and not (folder / name).exists()
    return [f"{folder / name}: named by `latest`, but missing"] if gone else []


def _read_json(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} is no object")
    return value


def _checksum(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
