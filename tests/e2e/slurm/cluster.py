"""A real SLURM of several nodes on this machine, for as long as the body of `cluster` runs.

Every node is a set of namespaces with an address, a host name and a /dev/shm of its own, so that it can lose its power
or its cable. All of it lies in one folder and ends with it; nothing of the machine's own set-up is touched.
"""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
FREEZER = Path("/sys/fs/cgroup/freezer/release_agent")
GPUS = 2  # of each node; they are /dev/null, which SLURM hands out like real ones
PATIENCE = 60  # seconds
DISK = 96  # MiB

CONF = """\
ClusterName={tag}
SlurmctldHost={host}({address}.254)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
TmpFS={folder}/tmp-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType={proctrack}
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=1
SlurmctldTimeout=10
SlurmdTimeout={slurmd_timeout}
MessageTimeout=10
KillWait=30
UnkillableStepTimeout=60
GresTypes=gpu
NodeName=DEFAULT CPUs=16 RealMemory=64000 Gres=gpu:{gpus} State=UNKNOWN
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
CGROUP = "CgroupPlugin=cgroup/v1\nCgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=yes\n"
# What is process 1 of a node: slurmd, and somebody who waits for orphans. $1 folder, $2 name.
NODE = """
hostname "$2"
mount --bind "$1/hosts" /etc/hosts && mount --bind "$1/nsswitch.conf" /etc/nsswitch.conf
mount -t tmpfs tmpfs /dev/shm
slurmd -D -N "$2" &
while :; do wait -n; sleep 0.2; done
"""


@dataclass(frozen=True, slots=True)
class Cluster:
    """`nodes` are the names of the nodes; `environment` is what the commands of SLURM need to find this one."""

    folder: Path
    number: int
    nodes: tuple[str, ...]
    power: dict[str, subprocess.Popen] = field(default_factory=dict)  # of each node: with it all its processes end

    @property
    def tag(self) -> str:
        """The beginning of the names of nodes and network devices; the latter may have 15 letters."""
        return f"b{self.number}"

    @property
    def address(self) -> str:
        """The first three numbers of the nodes' addresses."""
        return f"10.{100 + self.number // 250}.{self.number % 250}"

    @property
    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: object) -> str:
        """What a command of SLURM prints; an error of it is ours."""
        program = list(map(str, words))
        done = subprocess.run(
            program, env=os.environ | self.environment, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{program}: {done.stderr}"
        return done.stdout

    def job(self, number: str) -> dict[str, str]:
        """The fields of `scontrol show job`."""
        words = self.ask("scontrol", "show", "job", "-o", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def lose_power(self, node: str) -> None:
        """Every process of the node is killed at once."""
        self.power[node].kill()

    def start_node(self, node: str) -> None:
        """Give a node its power back."""
        self.power[node].wait()
        self.power[node] = _boot(self, node)

    def plug(self, node: str, *, cable: bool) -> None:
        """Pull the node's cable, or put it back."""
        _run("ip", "link", "set", self.cable(node), "up" if cable else "down")

    def cable(self, node: str) -> str:
        """The end of the node's cable that is in the switch."""
        return f"{self.tag}v{self.nodes.index(node) + 1}"

    def slow(self, node: str, rate: str) -> None:
        """What comes to the node comes at `rate`, such as 10mbit."""
        words = ("root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms")
        _run("tc", "qdisc", "add", "dev", self.cable(node), *words)

    def inside(self, node: str) -> list[str]:
        """The beginning of a command line that is to run on the node, in its namespaces."""
        children = Path(f"/proc/{self.power[node].pid}/task/{self.power[node].pid}/children").read_text().split()
        return ["nsenter", "-t", children[0], "--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={Path.cwd()}"]

    def kill_daemon(self, node: str) -> None:
        """slurmd alone: what it has started lives on."""
        _run(*self.inside(node), "kill", "-KILL", (self.folder / f"slurmd-{node}.pid").read_text().strip())

    def start_daemon(self, node: str) -> None:
        _run(*self.inside(node), "setsid", "slurmd", "-N", node, environment=self.environment)

    def kill_controller(self) -> None:
        os.kill(int((self.folder / "slurmctld.pid").read_text()), signal.SIGKILL)

    def start_controller(self) -> None:
        """It goes on from what it has saved."""
        _run("slurmctld", environment=self.environment)

    @property
    def disk(self) -> Path:
        """A file system of its own, which can be filled and frozen."""
        return self.folder / "disk"

    def freeze(self, *, still: bool) -> None:
        """While it is still every write waits, and no signal ends that: a file server that is away."""
        _run("fsfreeze", "--freeze" if still else "--unfreeze", str(self.disk))


def why_not() -> str | None:
    """Why there can be no cluster here; installs Debian's packages where only they are missing."""
    if os.geteuid() != 0:
        return "a SLURM of several nodes needs root"
    if not Path("/etc/debian_version").exists():
        return "a SLURM of several nodes is made of Debian's packages"
    _install_packages()
    missing = [name for name in (*PROGRAMS, "ip") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} missing, and apt-get install {' '.join(PACKAGES)} iproute2 did not bring them"
    try:
        _run("unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--mount-proc", "true")
    except (OSError, subprocess.SubprocessError) as error:
        return f"no namespaces for nodes here ({error})"
    return None


def _install_packages() -> None:
    """What is missing; several processes of pytest may come here at once, and only one of them may be in apt-get."""
    with Path(tempfile.gettempdir(), "bertmae-tests-apt-get").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if all(shutil.which(name) for name in (*PROGRAMS, "ip")):
            return
        with suppress(OSError, subprocess.SubprocessError):
            install = ["apt-get", "install", "-qq", "--no-install-recommends", *PACKAGES, "iproute2"]
            for words in (["apt-get", "update", "-qq"], install):
                _run(*words, environment={"DEBIAN_FRONTEND": "noninteractive"}, patience=180)


def proctracks() -> list[str]:
    """The ways in which SLURM can follow processes here. Signals come to the task alone in the first one, in the
    second to all its descendants."""
    return ["cgroup"] * os.access(FREEZER, os.W_OK) + ["linuxproc"]


@contextmanager
def cluster(
    nodes: int, proctrack: str | None = None, *, slurmd_timeout: int = 10, disk: bool = False
) -> Iterator[Cluster]:
    """Start it, wait until every node is idle, and end all that ran in it. Several may run on a machine at once.

    `proctrack` is one of `proctracks`, the first of them by default. `slurmd_timeout` are the seconds without an answer
    after which a node is given up.
    """
    number = random.SystemRandom().randrange(20_000)  # several may run at once
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # munge wants one in which all may look, with a short name
    made = Cluster(folder, number, tuple(f"b{number}n{i + 1}" for i in range(nodes)))
    _write_files(made, proctrack or proctracks()[0], slurmd_timeout)
    try:
        if disk:  # before there are nodes, which do not see what is mounted later
            _mount_disk(made)
        _start_controller(made)
        for name in made.nodes:
            _start_node(made, name)
        _wait_for(lambda: made.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").count("\n") == nodes)
        yield made
    finally:
        _end(made)
        shutil.rmtree(folder, ignore_errors=True)


def _mount_disk(made: Cluster) -> None:
    image = made.folder / "disk.image"
    with image.open("wb") as file:
        file.truncate(DISK << 20)
    made.disk.mkdir()
    _run("mkfs.ext4", "-q", "-m", "0", str(image))
    _run("mount", "-o", "loop", str(image), str(made.disk))


def _write_files(made: Cluster, proctrack: str, slurmd_timeout: int) -> None:
    folder, host = made.folder, os.uname().nodename.partition(".")[0]
    for name in (
        "munge",
        "state",
        "log",
        "dev",
        *(f"{kind}-{node}" for node in made.nodes for kind in ("spool", "tmp")),
    ):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)
    for i in range(GPUS):
        os.mknod(folder / "dev" / f"nvidia{i}", 0o20666, os.makedev(1, 3))
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    (folder / "munge" / "key").chmod(0o600)
    hosts = [f"{made.address}.{i} {name}" for i, name in enumerate(made.nodes, start=1)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", f"{made.address}.254 {host}", *hosts]) + "\n")
    (folder / "nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files\n")  # no server is asked in vain
    port = 17000 + made.number % 4000 * 2
    lines = [
        f"NodeName={name} NodeHostname={name} NodeAddr={made.address}.{i} Port={port + 1}"
        for i, name in enumerate(made.nodes, start=1)
    ]
    settings = {"tag": made.tag, "host": host, "address": made.address, "port": port, "folder": folder, "gpus": GPUS}
    settings |= {"proctrack": f"proctrack/{proctrack}", "slurmd_timeout": slurmd_timeout, "nodes": "\n".join(lines)}
    (folder / "slurm.conf").write_text(CONF.format(**settings))
    names = f"{made.tag}n[1-{len(made.nodes)}]"
    (folder / "gres.conf").write_text(f"NodeName={names} Name=gpu File={folder}/dev/nvidia[0-{GPUS - 1}]\n")
    if proctrack == "cgroup":
        (folder / "cgroup.conf").write_text(CGROUP)


def _start_controller(made: Cluster) -> None:
    folder, munge = made.folder, made.folder / "munge"
    files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    _run("munged", *(f"--{option}={munge / name}" for option, name in files.items()))
    _run("ip", "link", "add", f"{made.tag}br", "type", "bridge")
    _run("ip", "address", "add", f"{made.address}.254/24", "dev", f"{made.tag}br")
    _run("ip", "link", "set", f"{made.tag}br", "up")
    _run("slurmctld", "-c", environment={"SLURM_CONF": str(folder / "slurm.conf")})


def _start_node(made: Cluster, name: str) -> None:
    number = made.nodes.index(name) + 1
    cable = f"{made.tag}v{number}"
    _run("ip", "netns", "add", name)
    _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    _run("ip", "link", "set", cable, "master", f"{made.tag}br", "up")
    _run("ip", "-n", name, "address", "add", f"{made.address}.{number}/24", "dev", "eth0")
    for device in ("lo", "eth0"):
        _run("ip", "-n", name, "link", "set", device, "up")
    made.power[name] = _boot(made, name)


def _boot(made: Cluster, name: str) -> subprocess.Popen:
    # `ip netns exec` would mount another /sys, in which slurmd finds no cgroups.
    program = ["nsenter", f"--net=/run/netns/{name}", "unshare", "--uts", "--ipc", "--mount", "--pid", "--fork"]
    program += ["--kill-child", "--mount-proc", "--propagation", "private", "bash", "-c", NODE, "node"]
    with (made.folder / "log" / f"{name}.txt").open("ab") as log:
        return subprocess.Popen(
            [*program, str(made.folder), name],
            env=os.environ | made.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _end(made: Cluster) -> None:
    """What was never started is no error."""
    if made.disk.is_mount():  # a process that waits for a frozen disk cannot be killed
        subprocess.run(["fsfreeze", "--unfreeze", str(made.disk)], capture_output=True)
    for node in made.power.values():
        node.kill()
        node.wait()
    for file in (made.folder / "slurmctld.pid", made.folder / "munge" / "pid"):
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(file.read_text()), signal.SIGKILL)
    for name in made.nodes:
        subprocess.run(["ip", "netns", "del", name], capture_output=True)
        subprocess.run(["ip", "link", "del", made.cable(name)], capture_output=True)
    subprocess.run(["ip", "link", "del", f"{made.tag}br"], capture_output=True)
    subprocess.run(["umount", "--lazy", str(made.disk)], capture_output=True)
    for name in made.nodes:
        for group in sorted(Path("/sys/fs/cgroup").glob(f"*/slurm_{name}"), reverse=True):
            for inner, _, _ in sorted(os.walk(group), reverse=True):
                with suppress(OSError):
                    Path(inner).rmdir()


def _run(*words: str, environment: dict[str, str] | None = None, patience: float = PATIENCE) -> None:
    done = subprocess.run(words, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=patience)
    if done.returncode:
        raise subprocess.SubprocessError(f"{' '.join(words)}: {done.stderr.strip()}")


def _wait_for(condition) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the cluster did not come up")
        time.sleep(0.05)
