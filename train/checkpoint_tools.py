"""`python -m train checkpoint`: list, verify, tidy up and copy out the checkpoints of a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from train.checkpoint import chosen, is_kept_for_good, read_table, run_checkpoints
from train.checkpoint_folder import MANIFEST, STATE, committed, damages, half_done, named, read_json
from train.config_file import load_config
from train.errors import BertmaeError, CheckpointError, UserError
from train.run_directory import lock
from train.whole_folder import refuse_used, whole_folder


def list_checkpoints(run: Path) -> Iterator[str]:
    """A line for each checkpoint: step, tokens, size, whole (by the sizes of its files) or why not, and why it stays.

    Raises UserError where `run` is no run folder.
    """
    folder = run_checkpoints(run)
    keep_every = _keep_every(run)
    yield f"{'step':>12} {'tokens':>18} {'size':>10}  state"
    for path in sorted(committed(folder)):
        problems = list(damages(path, checksums=False))
        marks = [pointer for pointer in ("latest", "best") if named(folder, pointer) == path.name]
        marks += ["kept for good"] if is_kept_for_good(path, keep_every) else []
        words = "; ".join(problems) or "whole"
        step = int(path.name.removeprefix("step-"))
        yield f"{step:>12,} {_tokens(path):>18} {_size(path):>10}  {words}{''.join(f', {mark}' for mark in marks)}"
    for path in half_done(folder):
        yield f"{path.name}: half-written or half-removed; `checkpoint delete-incomplete` removes it"


def verify_checkpoints(run: Path) -> Iterator[str]:
    """Read every byte of every checkpoint: a line for each whole one and for each damaged file.

    Raises UserError where `run` is no run folder; at the end CheckpointError with the first damage, or where there is
    no checkpoint at all.
    """
    folder = run_checkpoints(run)
    found = sorted(committed(folder))
    if not found:
        raise CheckpointError(f"{folder}: no checkpoint is there")
    damaged: list[str] = []
    for path in found:
        here = [f"{path}: {damage}" for damage in damages(path)]
        yield from here or [f"{path}: whole"]
        damaged += here
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise CheckpointError(f"{damaged[0]}{more}; a run goes on from its newest whole checkpoint")


def delete_incomplete(run: Path) -> Iterator[str]:
    """Remove temporary folders and checkpoints without a manifest; a line for each.

    Raises UserError where `run` is no run folder, a process trains in it, or a folder cannot be removed.
    """
    folder = run_checkpoints(run)
    with lock(run, patience=0.0):
        incomplete = [*half_done(folder), *(path for path in committed(folder) if not (path / MANIFEST).exists())]
        for path in incomplete:
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise UserError(f"{path}: cannot be removed ({error.strerror})") from error
            yield f"Removed {path}."
    if not incomplete:
        yield f"Nothing to remove: {folder} holds nothing incomplete."


def consolidate(run: Path, output: Path, step: int | None = None) -> Iterator[str]:
    """Copy the weights of the newest whole checkpoint, or that of `step`, with config.yaml and tokenizer/.

    Yields what was done, in sentences. Raises UserError where `run` is no run folder or `output` is in use, and
    CheckpointError where there is no such whole checkpoint, or the copy is not what was verified.
    """
    found, problems = chosen(run, step)
    refuse_used(output)
    with whole_folder(output) as folder:
        shutil.copy(found.path / "model.safetensors", folder)
        shutil.copy(found.path / MANIFEST, folder)  # for a look at the copy
        shutil.copy(run / "config.yaml", folder)
        shutil.copytree(run / "tokenizer", folder / "tokenizer")
        if damage := next((text for text in damages(folder) if text.startswith("model.safetensors")), None):
            raise CheckpointError(f"{output}: the copy is damaged: {damage}; try again, or another disk")
        (folder / MANIFEST).unlink()
        weights = read_table(folder, "model")
    yield from (f"Not used: {problem}." for problem in problems)
    count = sum(tensor.numel() for tensor in weights.values())
    yield (
        f"Copied step {found.step} ({found.state['tokens_seen']:,} tokens seen) of {run} to {output}: {count:,} fp32 "
        f"weights in {len(weights)} tensors by parameter name (model.safetensors), checked against their checksum. "
        "Nothing had to be put together: checkpoints hold whole tensors."
    )


ACTIONS: dict[str, Callable[[Path], Iterator[str]]] = {
    "list": list_checkpoints,
    "verify": verify_checkpoints,
    "delete-incomplete": delete_incomplete,
}


def _keep_every(run: Path) -> int | None:
    """As the run's configuration says; one that cannot be read keeps none, and is no reason not to list."""
    try:
        return load_config(run / "config.yaml").checkpoint.keep_every
    except BertmaeError:
        return None


def _tokens(path: Path) -> str:
    try:
        return f"{read_json(path / STATE)['tokens_seen']:,}"
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def _size(path: Path) -> str:
    """All of a folder's files, in the largest unit that leaves a number above 1."""
    size = float(sum(file.stat().st_size for file in path.rglob("*") if file.is_file()))
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
