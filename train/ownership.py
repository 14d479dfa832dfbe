"""Who writes in a run folder: one process at a time on one machine, and one start of a job on a cluster.

flock holds between the processes of a machine, on many network file systems not between machines. So rank 0 also
writes RUN/owner.json, and an older process that is still alive, behind a cut cable or after its node was given up,
finds another name there and ends.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from data_pipeline.durable import write_whole
from train.errors import UserError
from train.monitor.logs import log
from train.run_directory import lock

OWNER = "owner.json"
_LOOK_EVERY = 2.0  # seconds
_ITS_END = 120.0  # seconds that an older start of the same job may take to notice and end


def own(run: Path) -> ExitStack:
    """Hold the folder until the result is closed; if another start takes it meanwhile, this process ends with code 2.

    A later start of the same SLURM job takes the folder from an earlier one. Raises UserError where the folder cannot
    be written, another process trains in it, or a later start of this job has it.
    """
    before, mine = _read(run), _this_process()
    _refuse_to_go_back(run, before, mine)
    follows = _same_job(before, mine) and before["start"] < mine["start"]
    number = int(before.get("number", 0)) + 1
    if follows:
        _write(run, mine | {"number": number})  # first, so that the older one lets go of the lock
    held = ExitStack()
    held.enter_context(lock(run, _ITS_END) if follows else lock(run))
    with held:  # closed, should anything below fail
        _refuse_to_go_back(run, _read(run), mine)
        _write(run, mine | {"number": number})
        done = threading.Event()
        held.callback(done.set)
        threading.Thread(target=_watch, args=(run, done), daemon=True).start()
        return held.pop_all()


def refuse_another(run: Path) -> None:
    """Raises UserError where another process has taken the folder since this one began, naming it."""
    owner = _read(run)
    if owner and any(owner.get(name) != value for name, value in _this_process().items()):
        raise UserError(
            f"{run}: taken over by {_words(owner)}; this process ({_words(_this_process())}) writes no more and ends"
        )


def _watch(run: Path, done: threading.Event) -> None:
    """Beside the steps: the main thread may sit for hours in a collective whose other ranks are gone."""
    while not done.wait(_LOOK_EVERY):
        try:
            refuse_another(run)
        except UserError as error:
            if not done.is_set():
                log.error("%s", error)
                os._exit(UserError.exit_code)


def _refuse_to_go_back(run: Path, owner: dict[str, Any], mine: dict[str, Any]) -> None:
    if _same_job(owner, mine) and owner["start"] > mine["start"]:
        raise UserError(f"{run}: belongs to {_words(owner)}, a later start than this one ({_words(mine)}), which ends")


def _same_job(owner: dict[str, Any], mine: dict[str, Any]) -> bool:
    return mine["job"] is not None and owner.get("job") == mine["job"]


def _this_process() -> dict[str, Any]:
    """`job` and `start` are SLURM's: of one job, a later start has the higher number."""
    return {
        "job": os.environ.get("SLURM_JOB_ID"),
        "start": int(os.environ.get("SLURM_RESTART_COUNT", 0)),
        "host": socket.gethostname(),
        "process": os.getpid(),
    }


def _words(owner: dict[str, Any]) -> str:
    job = f"start {int(owner.get('start', 0)) + 1} of job {owner['job']}, " if owner.get("job") else ""
    return f"{job}process {owner.get('process')} on {owner.get('host')}"


def _read(run: Path) -> dict[str, Any]:
    """What owner.json says; nothing where there is none, it cannot be read, or a person wrote it."""
    try:
        owner = json.loads((run / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("start"), int) else {}


def _write(run: Path, owner: dict[str, Any]) -> None:
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    write_whole(run / OWNER, (json.dumps(owner | {"since": since}) + "\n").encode())
