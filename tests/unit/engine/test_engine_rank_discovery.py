"""Rank discovery: what launchers really leave in the environment, and the one line where it contradicts itself."""

import pytest

from train.errors import UserError
from train.rank_discovery import Place, adopt, discover, host_of, hosts_of, may_speak

PROCESS = 4711

# As SLURM 22.05 sets them: task 3 of `srun` in a job of --nodes=2 --ntasks-per-node=2 --gpus-per-node=2.
SRUN = {
    "CUDA_VISIBLE_DEVICES": "0,1",
    "SLURM_GPUS_ON_NODE": "2",
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "n[1-2]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_LAUNCH_NODE_IPADDR": "10.77.0.1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    "SLURM_TASK_PID": str(PROCESS),
}
# The batch script of the same job: a procid and a number of tasks, but no step.
BATCH = {name: value for name, value in SRUN.items() if "STEP" not in name} | {
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
BATCH_OF_ONE = BATCH | {"SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "CUDA_VISIBLE_DEVICES": "0"}
ONE_TASK = SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "CUDA_VISIBLE_DEVICES": "0"}
# mpiexec of Open MPI 5 and of MPICH 5, rank 1 of 2 on one node.
OPEN_MPI = {
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-host-11822@1",
    "PMIX_RANK": "1",
}
MPICH = {"MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1", "PMI_RANK": "1", "PMI_SIZE": "2", "PMI_FD": "9"}
TORCHRUN = {
    "GROUP_WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "MASTER_ADDR": "n2",
    "MASTER_PORT": "40001",
    "RANK": "3",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_RUN_ID": "12",
    "WORLD_SIZE": "4",
}
# One torchrun a node: srun gives each of the two launchers one task, whose child this process is.
ONE_A_NODE = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_TASK_PID": "99"}
TORCHRUN_IN_SRUN = SRUN | ONE_A_NODE | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0"} | TORCHRUN
BOUND = {"CUDA_VISIBLE_DEVICES": "1"}  # srun --gpus-per-task=1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"MASTER_ADDR": "login", "MASTER_PORT": "1"}, Place()),
        (TORCHRUN, Place(3, 4, 1, "torchrun", "n2", 40001)),
        (TORCHRUN_IN_SRUN, Place(3, 4, 1, "torchrun", "n2", 40001)),
        (BATCH | TORCHRUN, Place(3, 4, 1, "torchrun", "n2", 40001)),
        (SRUN, Place(3, 4, 1, "srun", "n1", 15012)),
        (SRUN | BOUND, Place(3, 4, 1, "srun", "n1", 15012, has_own_device=True)),
        (SRUN | {"MASTER_ADDR": "n1-ib", "MASTER_PORT": "7"}, Place(3, 4, 1, "srun", "n1-ib", 7)),
        (SRUN | {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}, Place(3, 4, 1, "srun", "n1", 15012)),
        (SRUN | {"SLURM_STEP_NUM_NODES": "1"}, Place(3, 4, 1, "srun", "127.0.0.1", 15012)),
        (SRUN | {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_FD": "11"}, Place(3, 4, 1, "srun", "n1", 15012)),
        (SRUN | {"PMIX_RANK": "3"}, Place(3, 4, 1, "srun", "n1", 15012)),
        (ONE_TASK, Place()),
        (BATCH_OF_ONE, Place()),
        (MPICH | {"MASTER_PORT": "5"}, Place(1, 2, 1, "mpiexec", "127.0.0.1", 5)),
        (OPEN_MPI | {"MASTER_PORT": "5"}, Place(1, 2, 1, "mpiexec", "127.0.0.1", 5)),
        # mpiexec starts its own daemons with srun, one a node: their step is not the world.
        (SRUN | ONE_A_NODE | OPEN_MPI | {"MASTER_PORT": "5"}, Place(1, 2, 1, "mpiexec", "127.0.0.1", 5)),
        (OPEN_MPI | {"OMPI_COMM_WORLD_LOCAL_SIZE": "1", "MASTER_PORT": "5"}, Place(1, 2, 1, "mpiexec", "", 5)),
    ],
)
def test_the_place_is_what_the_launcher_says(environment, expected):
    """Reference: variables of real launchers, and the ranks that they stand for."""
    assert discover(environment, PROCESS) == expected


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        (BATCH, "4 tasks, but the command was started once, without srun: write srun in front"),
        (BATCH_OF_ONE | {"SLURM_JOB_NUM_NODES": "2"}, "2 nodes, but the command was started once"),
        (BATCH_OF_ONE | {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "3 GPUs and one task.* launch --nproc-per-node 3"),
        (ONE_TASK | {"CUDA_VISIBLE_DEVICES": "0,1"}, "2 GPUs and one task.*--ntasks-per-node=2"),
        (SRUN | {"WORLD_SIZE": "8"}, "WORLD_SIZE is 8 in the environment, but srun says 4"),
        (SRUN | {"RANK": "0", "WORLD_SIZE": "4"}, "RANK is 0 in the environment, but srun says 3"),
        (MPICH | {"WORLD_SIZE": "1"}, "WORLD_SIZE is 1 in the environment, but mpiexec says 2"),
        (SRUN | TORCHRUN, "srun was started inside of torchrun: its 4 tasks all have RANK 3"),
        (TORCHRUN_IN_SRUN | {"GROUP_WORLD_SIZE": "1"}, "srun started 2 launchers.*--nnodes=2"),
        (MPICH | TORCHRUN | {"GROUP_WORLD_SIZE": "1"}, "mpiexec started 2 launchers"),
        (SRUN | {"SLURM_PROCID": "4"}, "rank 4 of srun is not below the world size 4"),
        (SRUN | {"SLURM_LOCALID": ""}, "SLURM_LOCALID not set"),
        (SRUN | {"SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', not a number"),
        ({"PMI_RANK": "0", "PMI_SIZE": "2"}, "no MPI_LOCALRANKID"),
    ],
)
def test_a_contradiction_names_the_setting_to_change(environment, words):
    """Reference: what a person would have to do about it."""
    with pytest.raises(UserError, match=words):
        discover(environment, PROCESS)


def test_tasks_that_srun_spread_unevenly_are_refused_unless_that_was_asked_for():
    """Reference: what `srun --ntasks=3` does on two nodes, --ntasks-per-node not given."""
    uneven = SRUN | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}
    assert discover(uneven, PROCESS).world_size == 4
    del uneven["SLURM_NTASKS_PER_NODE"]
    with pytest.raises(UserError, match=r"3,1 tasks.*--ntasks=4 set --ntasks-per-node"):
        discover(uneven, PROCESS)


def test_two_jobs_and_two_steps_have_ports_of_their_own():
    """Reference: another number for each, below those that Linux gives away by itself (32768)."""
    places = [SRUN, SRUN | {"SLURM_JOB_ID": "13"}, SRUN | {"SLURM_STEP_ID": "1"}, SRUN | {"SLURM_JOB_ID": "987654"}]
    ports = {discover(place, PROCESS).port for place in places}
    assert len(ports) == len(places)
    assert all(1024 < port < 32768 for port in ports)


def test_the_processes_of_one_mpiexec_have_one_port():
    """Reference: the other rank's variables; another mpiexec has another port."""
    other = OPEN_MPI | {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_LOCAL_RANK": "0", "PMIX_RANK": "0"}
    assert discover(OPEN_MPI).port == discover(other).port
    assert discover(OPEN_MPI).port != discover(OPEN_MPI | {"PMIX_NAMESPACE": "prterun-host-11823@1"}).port


@pytest.mark.parametrize(
    ("names", "hosts"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1 n2"),
        ("n[1-2]", "n1 n2"),
        ("gpu-[003-005,009],login1", "gpu-003 gpu-004 gpu-005 gpu-009 login1"),
        ("r[1-2]n[9-10]", "r1n9 r1n10 r2n9 r2n10"),
        ("n[7]-ib,n8-ib", "n7-ib n8-ib"),
        ("a-b.c[2,4].d", "a-b.c2.d a-b.c4.d"),
    ],
)
def test_all_hosts_of_a_node_list(names, hosts):
    """Reference: the lines of `scontrol show hostnames`."""
    assert hosts_of(names) == hosts.split()


def test_the_host_of_a_rank_that_never_came():
    """Reference: SLURM_NODEID of such tasks of srun. Under torchrun, or dealt out in turns, nobody knows it."""
    step = {"SLURM_STEP_NODELIST": "n[1-4]", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1"}
    assert [host_of(step, rank) for rank in range(7)] == ["n1", "n1", "n2", "n2", "n3", "n3", "n4"]
    assert host_of({}, 0) == ""
    assert host_of(step | {"SLURM_DISTRIBUTION": "cyclic"}, 0) == ""
    assert host_of(step | {"TORCHELASTIC_RUN_ID": "none"}, 0) == ""


def test_all_later_code_finds_the_ranks_of_srun_as_torchruns_variables():
    """Reference: the ranks that discover gives; a process alone has no variables, and a refusal is every rank's."""
    environment = dict(SRUN, SLURM_TASK_PID="1")
    adopt(environment)
    assert (environment["RANK"], environment["WORLD_SIZE"], environment["LOCAL_RANK"]) == ("3", "4", "1")
    adopt(alone := {})
    assert alone == {}
    with pytest.raises(UserError) as caught:
        adopt(dict(BATCH))
    assert caught.value.everywhere


def test_one_process_speaks_for_all():
    """Reference: rank 0 of each launcher; torchrun's ranks count, not those of the srun around it."""
    assert [may_speak(place) for place in ({}, SRUN, BATCH, MPICH, OPEN_MPI)] == [True, False, True, False, False]
    assert may_speak(SRUN | {"SLURM_PROCID": "0"})
    assert may_speak(SRUN | TORCHRUN | {"RANK": "0"})
    assert not may_speak(TORCHRUN_IN_SRUN)
