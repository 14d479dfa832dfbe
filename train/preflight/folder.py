"""Whether the run folder takes files, is one and the same for all ranks, and has room for the next checkpoints."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from train.config import Config
from train.distributed import Ranks, on_first_rank
from train.errors import UserError
from train.preflight.findings import Finding, ok, on_every_rank, warning, wrong

_PARAMETER_BYTES = 12  # the fp32 weight and AdamW's two moments
_GIGABYTE, _MEGABYTE = 10**9, 10**6


def check_folder(run: Path, ranks: Ranks) -> list[Finding]:
    """A file that rank 0 writes, every rank sees; every rank can write one. The same findings on all ranks."""
    try:
        mark = Path(on_first_rank(ranks, lambda: str(_mark(_existing(run)))))
    except UserError as error:
        return [wrong(str(error))]
    try:
        return on_every_rank(ranks, lambda: _own_findings(run, mark.name, ranks))
    finally:
        if ranks.rank == 0:
            mark.unlink(missing_ok=True)


def room(config: Config, parameters: int) -> Finding:
    """Whether the disk of the run folder holds the checkpoints to come, 12 bytes for each parameter."""
    run, size = Path(config.run.directory), _PARAMETER_BYTES * parameters
    wanted = config.checkpoint.keep_last + 1  # the oldest goes when the next one is whole
    there = len([path for path in (run / "checkpoints").glob("*") if path.is_dir()])
    needed, free = max(1, wanted - there) * size, shutil.disk_usage(_existing(run)).free
    words = f"{_size(needed)} for {max(1, wanted - there)} checkpoints of {_size(size)} to come, {_size(free)} free"
    if free < needed:
        return warning(f"disk of {run}: {words}: make room, or lower checkpoint.keep_last")
    return ok(f"disk of {run}: {words}")


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest thing above it that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _mark(folder: Path) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(prefix=".check-", dir=folder)
    except OSError as error:
        raise UserError(f"run.directory: {folder} takes no file ({error.strerror}); give another one") from error
    os.close(descriptor)
    return Path(name)


def _own_findings(run: Path, mark: str, ranks: Ranks) -> list[Finding]:
    _mark(_existing(run)).unlink()
    # A network file system may show a new file late: after a write of one's own it looks again.
    if mark not in [path.name for path in _existing(run).iterdir()]:
        return [wrong(f"run.directory {run}: not the folder that rank 0 has; give one on a shared file system")]
    shared = ", the same for all ranks" if ranks.world_size > 1 else ""
    return [ok(f"run.directory {run}: can be written{shared}")]


def _size(count: int) -> str:
    return f"{count / _GIGABYTE:,.1f} GB" if count >= _GIGABYTE else f"{count / _MEGABYTE:,.1f} MB"
