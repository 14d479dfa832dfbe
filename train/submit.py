"""A run as a SLURM job: the script and the configuration in the run folder, and sbatch."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.durable import write_whole, writing
from train.config import Config
from train.config_file import dump_config
from train.errors import UserError
from train.provenance import code_version

_ROOT = Path(__file__).parents[1]
_TEMPLATE = _ROOT / "launch_scripts" / "slurm_pretrain.sbatch"
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
_PATIENCE = 120.0  # seconds that sbatch may take
_EARLY = 60  # seconds by which SLURM may send its signal too early


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked of SLURM: `options` are further ones of sbatch, such as --account=me."""

    nodes: int
    gpus_per_node: int
    processes_per_node: int | None  # where they are not the GPUs
    time: str
    save_seconds: int  # before the time limit, in which a checkpoint must be whole
    options: tuple[str, ...] = ()


def submit(config: Config, job: Job, *, dry_run: bool) -> Iterator[str]:
    """Write RUN/slurm/job.sbatch and RUN/slurm/config.yaml, ask `sbatch --test-only`, and submit; tells what it does.

    With `dry_run` the script is shown and nothing is written or submitted. Raises UserError for a time that leaves no
    room to save, a folder that cannot be written, where sbatch is missing, and where it refuses.
    """
    folder = (Path(config.run.directory) / "slurm").absolute()
    _check(job)
    text = script(config, job, folder)
    if dry_run:
        yield text
        yield from _outlook(config, job)
        yield "Dry run: nothing was written or submitted."
        return
    if shutil.which("sbatch") is None:
        raise UserError("sbatch: no such program: submit on a machine of the cluster, or see the script with --dry-run")
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "config.yaml", dump_config(config).encode())
        write_whole(folder / "job.sbatch", text.encode())
    tested = _sbatch("--test-only", str(folder / "job.sbatch"))
    yield from (line.removeprefix("sbatch: ") for line in tested.stderr.splitlines())
    number = _sbatch("--parsable", str(folder / "job.sbatch")).stdout.strip().partition(";")[0]
    yield f"Submitted job {number}."
    yield from _outlook(config, job)
    yield f"What it says: {folder}/job-{number}.txt. Its place in the queue: squeue -j {number}"
    yield f"Stop it with a checkpoint: scancel {number}. Go on: sbatch {folder}/job.sbatch"


def script(config: Config, job: Job, folder: Path) -> str:
    """launch_scripts/slurm_pretrain.sbatch with the options, the configuration and the code version of this run."""
    body = _template().split("\n\n", maxsplit=1)[1]
    options = [
        f"--job-name={_name(config)}",
        f"--nodes={job.nodes}",
        "--ntasks-per-node=1",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        f"--time={job.time}",
        f"--signal=B:USR1@{job.save_seconds}",
        "--requeue",
        "--open-mode=append",
        f"--output={folder}/job-%j.txt",
        f"--chdir={Path.cwd()}",
        *job.options,
    ]
    given = {"PYTHON": sys.executable, "LOGS": str(folder)}
    if job.processes_per_node:
        given["NPROC"] = str(job.processes_per_node)
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        f"# Submitted with the code of {code_version(_ROOT)}; the same command, or sbatch with this file, goes on.",
        *(f"{name}={shlex.quote(value)}" for name, value in given.items()),
        f"set -- {shlex.quote(str(folder / 'config.yaml'))}",
    ]
    return "\n".join(lines) + "\n\n" + body


def _template() -> str:
    try:
        return _TEMPLATE.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{_TEMPLATE}: cannot be read ({error.strerror}): submit needs the project's folder, not the package alone"
        ) from error


def _check(job: Job) -> None:
    seconds = _seconds(job.time)
    if seconds is not None and seconds <= job.save_seconds + _EARLY:
        raise UserError(
            f"--time {job.time}: SLURM asks to stop {job.save_seconds} to {job.save_seconds + _EARLY} s before, "
            "and no time is left to train; give more, or a lower --save-seconds"
        )
    if any(any(character.isspace() for character in option) for option in job.options):
        raise UserError("an option of sbatch holds a blank; write it as --option=value")


def _seconds(time: str) -> int | None:
    """Of the forms that SLURM knows: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for words such as UNLIMITED."""
    if time.isalpha():
        return None
    found = _TIME.fullmatch(time)
    if found is None:
        raise UserError(f"--time {time}: no time that SLURM knows; write hours:minutes:seconds, as in 24:00:00")
    days, *parts = found.groups()
    first, second, third = (None if part is None else int(part) for part in parts)
    if days is None and third is None:  # minutes, minutes:seconds
        return 60 * (first or 0) + (second or 0)
    return 86400 * int(days or 0) + 3600 * (first or 0) + 60 * (second or 0) + (third or 0)


def _name(config: Config) -> str:
    return re.sub(r"[^\w.-]", "-", Path(config.run.directory).absolute().name)


def _outlook(config: Config, job: Job) -> Iterator[str]:
    each = job.processes_per_node or job.gpus_per_node or 1
    ranks = job.nodes * each
    yield (
        f"{job.nodes} {'node' if job.nodes == 1 else 'nodes'} x {each} processes = {ranks} ranks train "
        f"{config.run.directory} until step {config.run.steps:,}."
    )
    yield (
        f"{job.save_seconds} s before the limit of {job.time} they commit a checkpoint, and the job queues itself "
        "again until all steps are done; after a lost node or a preemption it goes on from the last checkpoint."
    )


def _sbatch(*words: str) -> subprocess.CompletedProcess[str]:
    """Raises UserError with the last thing that sbatch says where it refuses or does not answer."""
    try:
        done = subprocess.run(["sbatch", *words], capture_output=True, text=True, timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"sbatch does not answer for {_PATIENCE:.0f} s; is the controller up? (sinfo)") from error
    if done.returncode:
        raise UserError(f"sbatch refuses: {_reason(done.stderr.splitlines())}; the script is {words[-1]}")
    return done


def _reason(lines: Sequence[str]) -> str:
    """What of sbatch's errors says why: all but the last, where there are several, are details of it."""
    words = [re.sub(r"^(sbatch: |error: |allocation failure: )+", "", line) for line in lines if line.strip()]
    return "; ".join(words) or "it does not say why"
