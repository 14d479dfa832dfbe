"""Which rank this process is, from what its launcher left in the environment: torchrun, srun, mpiexec, or nobody."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator, Mapping, MutableMapping
from typing import NamedTuple

from train.errors import UserError

_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_MPI = (  # rank, size, rank on the node, size on the node
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
_MPI_JOB = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid", "SLURM_JOB_ID")  # the same in all processes of one mpiexec
_FIRST_PORT, _PORTS = 15_000, 15_000  # below those that systems give away by themselves
_LOOPBACK = "127.0.0.1"

Environment = Mapping[str, str]


class Place(NamedTuple):
    """This process among `world_size`. `address` and `port` of rank 0 are "" and 0 where nothing says them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = ""  # "" where nobody started several
    address: str = ""
    port: int = 0
    has_own_device: bool = False  # it sees one GPU of several: its own


def discover(environment: Environment, process: int | None = None) -> Place:
    """The place of `process` (default: this one), as torchrun, or srun, or mpiexec says; else alone.

    Raises UserError, naming the setting to change, where the variables contradict each other.
    """
    process = os.getpid() if process is None else process
    written = _written(environment)
    launched = _of_mpi(environment) or _of_srun(environment)
    if "TORCHELASTIC_RUN_ID" in environment:
        place = _whole(environment, written, "torchrun")
        if launched is not None:
            _refuse_torchrun(environment, launched, process)
    elif launched is not None:
        _refuse_others(written, launched)
        place = launched
    elif written:
        place = _whole(environment, written, "the environment")
    else:
        _refuse_one_of_many(environment)
        place = Place()
    if not 0 <= place.rank < place.world_size:
        raise UserError(f"rank {place.rank} of {place.launcher} is not below the world size {place.world_size}")
    return place


def adopt(environment: MutableMapping[str, str]) -> None:
    """Write what srun or mpiexec says as RANK, WORLD_SIZE and LOCAL_RANK, where all later code looks for it.

    Raises what `discover` raises, as every process of the job does.
    """
    try:
        place = discover(environment)
    except UserError as error:
        error.everywhere = True
        raise
    if place.launcher:
        environment.update({name: str(number) for name, number in zip(_NAMES, place[:3], strict=True)})


def may_speak(environment: Environment) -> bool:
    """Whether this process is rank 0, or may be where the variables were refused: one line for all is enough."""
    names = ["RANK"]
    if "TORCHELASTIC_RUN_ID" not in environment:  # torchrun counts its nodes in another order than srun
        names += ["OMPI_COMM_WORLD_RANK", "PMI_RANK", *(["SLURM_PROCID"] if "SLURM_STEP_ID" in environment else [])]
    return all(environment.get(name, "0") == "0" for name in names)


def hosts_of(names: str) -> list[str]:
    """All names of a SLURM node list: "n[03-05,9],m1" gives n03, n04, n05, n9, m1."""
    parts = re.findall(r"((?:[^\[,]|\[[^\]]*\])+)", names)
    if not parts:
        raise UserError(f"SLURM's node list {names!r} names no node")
    return [host for part in parts for host in _expanded(part)]


def host_of(environment: Environment, rank: int) -> str:
    """The host of a task of srun, in its order of nodes; "" where srun is not the launcher, or deals them out."""
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    dealt_out = "cyclic" in environment.get("SLURM_DISTRIBUTION", "") or "TORCHELASTIC_RUN_ID" in environment
    if not counts or dealt_out or "SLURM_STEP_NODELIST" not in environment:
        return ""
    counts_N = [  # "2(x3),1" is 2, 2, 2, 1
        int(count) for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", counts) for _ in range(int(times or 1))
    ]
    for host, count in zip(hosts_of(environment["SLURM_STEP_NODELIST"]), counts_N, strict=False):
        if rank < count:
            return host
        rank -= count
    return ""


def _expanded(part: str) -> Iterator[str]:
    found = re.match(r"([^\[]*)\[([^\]]*)\](.*)", part)
    if found is None:
        yield part
        return
    before, numbers, after = found.groups()
    for one in numbers.split(","):
        first, _, last = one.partition("-")
        for number in range(int(first), int(last or first) + 1):
            yield from (f"{before}{number:0{len(first)}}{rest}" for rest in _expanded(after))


def _written(environment: Environment) -> dict[str, int]:
    """RANK, WORLD_SIZE and LOCAL_RANK, as far as they are there."""
    try:
        return {name: int(environment[name]) for name in _NAMES if name in environment}
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from error


def _whole(environment: Environment, written: dict[str, int], launcher: str) -> Place:
    if missing := [name for name in _NAMES if name not in written]:
        raise UserError(f"{', '.join(missing)} not set beside the other torchrun variables: start with torchrun")
    address = environment.get("MASTER_ADDR", "")
    port = _number(environment, "MASTER_PORT") if address else 0
    rank, world_size, local_rank = (written[name] for name in _NAMES)
    return Place(rank, world_size, local_rank, launcher, address, port)


def _of_mpi(environment: Environment) -> Place | None:
    """As mpiexec says. Where srun takes its part (--mpi=pmi2) it is srun that knows the ranks of a node."""
    names = next((names for names in _MPI if names[0] in environment and names[1] in environment), None)
    if names is None:
        return None
    rank, world_size = (_number(environment, name) for name in names[:2])
    srun = (environment.get("SLURM_PROCID"), environment.get("SLURM_STEP_NUM_TASKS"))
    if world_size == 1 or (names[2] not in environment and srun == (str(rank), str(world_size))):
        return None
    if names[2] not in environment:
        raise UserError(f"{names[0]} is set, but no {names[2]}: start with mpiexec of MPICH or Open MPI, or torchrun")
    on_one_node = environment.get(names[3]) == str(world_size)
    address = environment.get("MASTER_ADDR") or (_LOOPBACK if on_one_node else "")
    # MPICH says no name of the job: its processes have one parent.
    job = next((environment[name] for name in _MPI_JOB if name in environment), str(os.getppid()))
    port = _number(environment, "MASTER_PORT", _port(zlib.crc32(job.encode())))
    return Place(rank, world_size, _number(environment, names[2]), "mpiexec", address, port)


def _of_srun(environment: Environment) -> Place | None:
    """As the step of srun says; the batch script itself, and a step of one task, are no world of several."""
    if "SLURM_STEP_ID" not in environment or _number(environment, "SLURM_STEP_NUM_TASKS", 1) == 1:
        return None
    rank, world_size, local_rank, job = (
        _number(environment, name) for name in ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_JOB_ID")
    )
    _refuse_uneven_tasks(environment)
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    launched_at = environment.get("SLURM_LAUNCH_NODE_IPADDR", "")
    head = _LOOPBACK if environment.get("SLURM_STEP_NUM_NODES") == "1" else hosts_of(hosts)[0] if hosts else launched_at
    address = environment.get("MASTER_ADDR") or head
    port = _number(environment, "MASTER_PORT", _port(job + 997 * _number(environment, "SLURM_STEP_ID")))
    # Where each task is bound to a GPU (--gpus-per-task) it sees that one alone, under the number 0.
    bound = _visible_gpus(environment) == 1 and _number(environment, "SLURM_GPUS_ON_NODE", 0) > 1
    return Place(rank, world_size, local_rank, "srun", address, port, bound)


def _refuse_torchrun(environment: Environment, outer: Place, process: int) -> None:
    """torchrun beside another launcher: rightly one torchrun for each of its processes, all in one world."""
    if environment.get("SLURM_TASK_PID") == str(process) and outer.launcher == "srun":
        raise UserError(
            f"srun was started inside of torchrun: its {outer.world_size} tasks all have RANK {environment['RANK']}; "
            "start torchrun with srun (launch_scripts/slurm_pretrain.sbatch), or leave one of them out"
        )
    is_first_start = environment.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"  # later on, nodes may have been lost
    if environment.get("GROUP_WORLD_SIZE") == "1" and is_first_start:
        raise UserError(
            f"{outer.launcher} started {outer.world_size} launchers, and each of them is a world of its own: give each "
            f"--nnodes={outer.world_size} and the same --rdzv-endpoint, or start one launcher (--ntasks-per-node=1, "
            "--nodes=1)"
        )


def _refuse_others(written: dict[str, int], launched: Place) -> None:
    known = dict(zip(_NAMES, launched[:3], strict=True))
    if wrong := [name for name in written if written[name] != known[name]]:
        name = "WORLD_SIZE" if "WORLD_SIZE" in wrong else wrong[0]
        raise UserError(
            f"{name} is {written[name]} in the environment, but {launched.launcher} says {known[name]}: "
            f"unset {', '.join(_NAMES)}, or start without {launched.launcher}"
        )


def _refuse_uneven_tasks(environment: Environment) -> None:
    """Raises UserError where srun put more tasks on one node than on another: --ntasks alone says only how many."""
    counts = environment.get("SLURM_STEP_TASKS_PER_NODE", "")
    if "SLURM_NTASKS_PER_NODE" not in environment and len({part.split("(")[0] for part in counts.split(",")}) > 1:
        tasks, nodes = environment.get("SLURM_STEP_NUM_TASKS"), environment.get("SLURM_STEP_NUM_NODES")
        raise UserError(
            f"srun put {counts} tasks on its {nodes} nodes: beside --ntasks={tasks} set --ntasks-per-node to the "
            "number of GPUs of a node"
        )


def _refuse_one_of_many(environment: Environment) -> None:
    """One process in a SLURM job that has room for several: the others would be idle without a word."""
    if "SLURM_JOB_ID" not in environment:
        return
    tasks = _number(environment, "SLURM_NTASKS", 1) if "SLURM_STEP_ID" not in environment else 1
    nodes = _number(environment, "SLURM_JOB_NUM_NODES", 1) if "SLURM_STEP_ID" not in environment else 1
    if tasks > 1 or nodes > 1:
        raise UserError(
            f"this job has {f'{tasks} tasks' if tasks > 1 else f'{nodes} nodes'}, but the command was started once, "
            "without srun: write srun in front of it, or ask for --nodes=1 --ntasks=1"
        )
    gpus = _visible_gpus(environment)
    if gpus > 1:
        raise UserError(
            f"this SLURM job has {gpus} GPUs and one task, which would use one of them: start with `python -m train "
            f"launch --nproc-per-node {gpus} pretrain ...`, or srun with --ntasks-per-node={gpus}, or set "
            "CUDA_VISIBLE_DEVICES to one"
        )


def _visible_gpus(environment: Environment) -> int:
    if "CUDA_VISIBLE_DEVICES" in environment:
        return len([part for part in environment["CUDA_VISIBLE_DEVICES"].split(",") if part.strip()])
    return _number(environment, "SLURM_GPUS_ON_NODE", 0)


def _port(job: int) -> int:
    return _FIRST_PORT + job % _PORTS


def _number(environment: Environment, name: str, default: int | None = None) -> int:
    text = environment.get(name, "")
    if not text and default is not None:
        return default
    if not text:
        raise UserError(f"{name} not set beside the other variables of the launcher: set it, or start with torchrun")
    if not text.isdecimal():
        raise UserError(f"{name} is {text!r}, not a number: unset it, or start with torchrun")
    return int(text)
