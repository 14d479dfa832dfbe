"""Checkpoint folders: written whole or not at all, verified before they are used.

    checkpoints/step-00001000/   model.safetensors exp_avg.safetensors exp_avg_sq.safetensors  fp32, by parameter name
                                 state.json         step, data cursor, counters; what made it (see provenance.py)
                                 manifest.json      size and checksum of every other file; written last
    checkpoints/latest           name of the newest one
    checkpoints/best             name of the one with the lowest validation loss, where the run keeps it

Tensors are whole and named, so that a checkpoint knows nothing of ranks, ZeRO stages or micro-batches.
"""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from data_pipeline.durable import fsync_folder, write_whole
from train.checkpoint_folder import (
    FORMAT,
    MANIFEST,
    STATE,
    VERSION,
    checksum_of,
    committed,
    half_done,
    named,
    read_json,
    verify,
)
from train.errors import CheckpointError, UserError
from train.monitor.logs import log

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A whole checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])


def save_checkpoint(
    folder: Path,
    step: int,
    tables: Mapping[str, Mapping[str, torch.Tensor]],
    state: Mapping[str, Any],
    keep_last: int,
    *,
    keep_every: int | None = None,
    keep_best: bool = False,
) -> Path:
    """Commit `folder`/step-NNNNNNNN: temporary name, fsync, manifest, rename, then `latest` and `best`; then prune.

    What stays: the `keep_last` newest ones, those of every `keep_every`-th step, and the one that `best` names: of
    those that are there, the one with the lowest state["validation_loss"]. Raises CheckpointError where the disk
    refuses (`is_full` tells why); what was there before is untouched.
    """
    final = folder / f"step-{step:08d}"
    partial = folder / f".{final.name}.partial"
    try:
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)
        _sweep(folder)
        refuse_too_little_room(folder, tables.values())
        partial.mkdir()
        _write_files(partial, tables, {"step": step, **state})
        _replace(partial, final)
        finish_commit(final, keep_last, keep_every=keep_every, keep_best=keep_best)
    except (OSError, SafetensorError, UserError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(
            f"{final}: cannot write the checkpoint: {reason}; make room or change the permission and start again"
        ) from error
    return final


def finish_commit(final: Path, keep_last: int, *, keep_every: int | None = None, keep_best: bool = False) -> None:
    """What follows the rename: `latest`, `best`, pruning. A run that was killed between does it at its next start.

    Raises OSError and UserError where the folder takes no files.
    """
    folder, step = final.parent, int(final.name.removeprefix("step-"))
    _sweep(folder)
    write_whole(folder / "latest", f"{final.name}\n".encode())
    if keep_best and (best := lowest_loss(folder, step)):
        write_whole(folder / "best", f"{best[1]}\n".encode())
    try:
        _prune(folder, final, keep_last, keep_every)
    except OSError as error:
        log.warning("%s: cannot be removed (%s), so it stays", error.filename or folder, error.strerror)


def lowest_loss(folder: Path, step: int) -> tuple[float, str] | None:
    """The lowest validation loss of the checkpoints up to `step` and the name of its folder; the older of two equals.

    Later ones are damaged, or the run would have gone on from there.
    """
    losses = [(loss, path.name) for path in committed(folder) if (loss := _validation_loss(path)) is not None]
    return min((pair for pair in losses if pair[1] <= f"step-{step:08d}"), default=None)


def is_full(error: BaseException | None) -> bool:
    """Whether the system's reason behind an error, which may be wrapped, is a full disk."""
    if isinstance(error, SafetensorError):
        return any(f"(os error {code})" in str(error) for code in _FULL)
    return error is not None and (getattr(error, "errno", None) in _FULL or is_full(error.__cause__))


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest whole checkpoint, and a sentence for each newer one that is damaged or missing."""
    problems: list[str] = []
    for path in sorted(committed(folder), reverse=True):
        problem = verify(path)
        if problem is None:
            return Checkpoint(path, read_json(path / STATE)), problems + _missing_latest(folder, path)
        problems.append(f"{path}: {problem}")
    return None, problems


def chosen(run: Path, step: int | None) -> tuple[Checkpoint, list[str]]:
    """A run's newest whole checkpoint, with a sentence for each newer one, or that of `step`; every byte was read.

    Raises UserError where `run` is no run folder, and CheckpointError where there is no such whole checkpoint.
    """
    folder = run_checkpoints(run)
    if step is None:
        newest, problems = newest_whole(folder)
        if newest is None:
            raise CheckpointError(f"{run}: no whole checkpoint{''.join('; ' + text for text in problems)}")
        return newest, problems
    path = folder / f"step-{step:08d}"
    if not path.exists():
        steps = ", ".join(str(int(other.name.removeprefix("step-"))) for other in sorted(committed(folder)))
        raise CheckpointError(f"{run}: no checkpoint of step {step}; there is {steps or 'none at all'}")
    if problem := verify(path):
        raise CheckpointError(f"{path}: {problem}; choose another --step")
    return Checkpoint(path, read_json(path / STATE)), []


def run_checkpoints(run: Path) -> Path:
    """The folder of a run's checkpoints. Raises UserError where `run` is no run folder."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no config.yaml, so no run folder")
    return run / "checkpoints"


def resume_point(folder: Path, steps_done: int) -> tuple[Checkpoint | None, list[str]]:
    """Where a run goes on: its newest whole checkpoint, or None for a run that never began.

    A run commits a checkpoint before its first step. So where metrics or the folder speak of an earlier start and no
    checkpoint is whole, something was lost: CheckpointError, never a silent start from zero.
    """
    _finish_replacing(folder)
    checkpoint, problems = newest_whole(folder)
    if checkpoint is None and (problems or steps_done or (folder / "latest").exists()):
        found = "; ".join(problems) or f"{folder} has none"
        raise CheckpointError(
            f"no whole checkpoint to go on from, though the run reached step {steps_done}: {found}; "
            "bring one back, or give another run.directory to begin anew"
        )
    return checkpoint, problems


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


def refuse_too_little_room(folder: Path, tables: Iterable[Mapping[str, torch.Tensor]]) -> None:
    """Before the first byte: a disk that is filled to the brim has no room for the run's other files either."""
    needed = sum(tensor.nbytes for tensors in tables for tensor in tensors.values())
    if shutil.disk_usage(folder).free < needed:
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {needed:,} bytes")


def _write_files(folder: Path, tables: Mapping[str, Mapping[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    for table, tensors in tables.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{table}.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    files = {}
    mode = (folder / STATE).stat().st_mode & 0o777
    for path in sorted(folder.iterdir()):
        path.chmod(mode)  # as the user's umask says; save_file lets its owner alone read
        _fsync(path)
        files[path.name] = {"bytes": path.stat().st_size, "checksum": checksum_of(path)}
    manifest = {"format": FORMAT, "version": VERSION, "files": files}
    write_whole(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _replace(partial: Path, final: Path) -> None:
    """Rename; a folder of that name, which is damaged or lacks something, makes way."""
    if final.exists():
        aside = final.with_name(f".{final.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        final.rename(aside)
        shutil.rmtree(aside)
    partial.rename(final)
    fsync_folder(final.parent)


def _finish_replacing(folder: Path) -> None:
    """Where a process was killed between the two renames of `_replace`, a whole checkpoint has lost its name."""
    for aside in folder.glob(".step-*.damaged"):
        final = folder / aside.name[1:].removesuffix(".damaged")
        for path in (folder / f".{final.name}.partial", aside):
            if not final.exists() and path.exists() and verify(path) is None:
                with suppress(OSError):  # a folder that takes no files is told of by who writes there
                    path.rename(final)


def _sweep(folder: Path) -> None:
    """Of another step, nothing else would remove what a killed process left."""
    for path in half_done(folder):
        shutil.rmtree(path)


def _prune(folder: Path, written: Path, keep_last: int, keep_every: int | None) -> None:
    # Folders of later steps are damaged, or the run would have gone on from there: they count for nothing.
    candidates = sorted(path for path in committed(folder) if path.name <= written.name)
    best = named(folder, "best")
    for path in candidates[:-keep_last]:
        if path.name == best or is_kept_for_good(path, keep_every):
            continue
        # The manifest goes first: a folder that is half deleted is never taken for a checkpoint.
        (path / MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(path)


def is_kept_for_good(path: Path, keep_every: int | None) -> bool:
    """Whether a checkpoint folder's step is one of every `keep_every`; what a run starts from (step 0) is not."""
    step = int(path.name.removeprefix("step-"))
    return bool(keep_every and step and step % keep_every == 0)


def _validation_loss(path: Path) -> float | None:
    try:
        loss = read_json(path / STATE).get("validation_loss") if (path / MANIFEST).exists() else None
    except (OSError, ValueError, TypeError):
        return None
    return loss if isinstance(loss, float) and math.isfinite(loss) else None


def _missing_latest(folder: Path, chosen: Path) -> list[str]:
    """A sentence where `latest` names a folder newer than the chosen one that is not there at all."""
    name = named(folder, "latest") or ""
    gone = name > chosen.name and not (folder / name).exists()
    return [f"{folder / name}: named by `latest`, but missing"] if gone else []


def _fsync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
