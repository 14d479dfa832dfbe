"""What clusters do to a job that trains: each fault done to a running job, and what became of the run.

A fault is done to the job once, and whatever a machine room would do later is done later too: a node gets its power
back, a cable is plugged in, a server answers again. Nothing else is done to the job.
"""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from e2e_commands import ROOT, environment, metrics
from slurm.cluster import Cluster

LEDGER = Path(__file__).parent / "ledger"
GOING = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED", "SUSPENDED", "STOPPED")
SAVE_SECONDS = 30  # before a time limit
PACE = 0.25  # seconds that a step takes at least: the job must be there for what happens to it
_LONGEST = 420.0  # seconds that a job may take on a busy machine


class Running(NamedTuple):
    """A job that trains in `run`."""

    slurm: Cluster
    run: Path
    number: str

    @property
    def ledgers(self) -> list[Path]:
        return list((self.slurm.folder / "ledgers").glob(f"{self.run.name}-*.jsonl"))

    @property
    def output(self) -> str:
        """What the job has said, with that of a later link of its chain."""
        files = sorted((self.run / "slurm").glob("job-*.txt"), key=lambda file: file.stat().st_mtime)
        return "".join(file.read_text() for file in files)

    def nodes(self) -> list[str]:
        """The nodes of the job; the first one has the batch script and rank 0's launcher."""
        names = self.slurm.job(self.number)["NodeList"]
        return self.slurm.ask("scontrol", "show", "hostnames", names).split()

    def processes(self, words: str) -> list[int]:
        """Those of this run that are `python -m train WORDS`, of whatever node."""
        program = f"^[^ ]*python[^ ]* .*-m train {words}.* {self.run}/slurm/config.yaml"
        found = subprocess.run(["pgrep", "-f", program], capture_output=True, text=True)
        return [int(number) for number in found.stdout.split()]


def with_ledger(slurm: Cluster, run: Path, pace: float = PACE) -> dict[str, str]:
    """Variables with which every process that trains in `run` keeps a ledger, and takes `pace` seconds for a step."""
    folder = slurm.folder / "ledgers"
    folder.mkdir(exist_ok=True)
    ledger = {"BERTMAE_TEST_LEDGER": str(folder / run.name), "BERTMAE_TEST_PACE": str(pace)}
    return {"PYTHONPATH": str(LEDGER)} | ledger


def submit(slurm: Cluster, run: Path, *words: object, pace: float = PACE) -> subprocess.CompletedProcess[str]:
    """`python -m train submit` for two nodes with a process each, where `words` say nothing else; options first."""
    program = [sys.executable, "-m", "train", "submit", "--nodes", 2, "--gpus-per-node", 1, "--time", "0:30:00", *words]
    return subprocess.run(
        list(map(str, [*program, f"run.directory={run}"])),
        cwd=ROOT,
        env=environment() | slurm.environment | with_ledger(slurm, run, pace),
        capture_output=True,
        text=True,
        timeout=120,
    )


def submitted(slurm: Cluster, run: Path, *words: object, pace: float = PACE) -> Running:
    """The job that trains in `run`."""
    done = submit(slurm, run, *words, pace=pace)
    assert done.returncode == 0, done.stderr
    return Running(slurm, run, done.stdout.split("Submitted job ")[1].split(".")[0])


def wait_for(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + _LONGEST
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def starts(job: Running) -> int:
    """How often processes began, those of one start together."""
    moments = sorted(ledger(job).began.values())
    return 1 + sum(after - before > 5.0 for before, after in itertools.pairwise(moments))


def recorded(run: Path) -> int:
    """Whole lines of metrics.jsonl."""
    file = run / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def reached(job: Running, step: int) -> None:
    wait_for(lambda: recorded(job.run) >= step, lambda: job.output)


def ended(job: Running) -> dict[str, str]:
    """Wait for the end of a job, which may be queued again meanwhile, and give its fields."""
    wait_for(lambda: job.slurm.job(job.number)["JobState"] not in GOING, lambda: job.output)
    return job.slurm.job(job.number)


def kill_worker(job: Running) -> None:
    os.kill(job.processes("pretrain")[-1], signal.SIGKILL)


def kill_launcher(job: Running) -> None:
    os.kill(job.processes("launch")[-1], signal.SIGKILL)


def lose_node(job: Running) -> None:
    """The node that comes back only when the job goes on elsewhere."""
    node = job.nodes()[1]
    job.slurm.lose_power(node)
    wait_for(lambda: int(job.slurm.job(job.number)["Restarts"]) > 0, lambda: job.output)
    time.sleep(5)
    job.slurm.start_node(node)


def lose_first_node(job: Running) -> None:
    """With the batch script and the launchers' meeting point."""
    node = job.nodes()[0]
    job.slurm.lose_power(node)
    wait_for(lambda: int(job.slurm.job(job.number)["Restarts"]) > 0, lambda: job.output)
    time.sleep(5)
    job.slurm.start_node(node)


def cut_cable(seconds: float) -> Callable[[Running], None]:
    def cut(job: Running) -> None:
        node = job.nodes()[1]
        job.slurm.plug(node, cable=False)
        time.sleep(seconds)
        job.slurm.plug(node, cable=True)

    return cut


def kill_daemon(job: Running) -> None:
    """slurmd of a node: its processes live on, and SLURM gives the node up."""
    node = job.nodes()[1]
    job.slurm.kill_daemon(node)
    wait_for(lambda: job.slurm.job(job.number)["JobState"] not in ("RUNNING",), lambda: job.output)
    time.sleep(20)
    job.slurm.start_daemon(node)


def restart_daemon(job: Running) -> None:
    """As an update of the packages does it: the node is not given up."""
    node = job.nodes()[1]
    job.slurm.kill_daemon(node)
    time.sleep(2)
    job.slurm.start_daemon(node)


def controller_away(seconds: float) -> Callable[[Running], None]:
    def restart(job: Running) -> None:
        job.slurm.kill_controller()
        time.sleep(seconds)
        job.slurm.start_controller()

    return restart


def preempt(job: Running) -> None:
    """By a job of a higher partition that wants all nodes for some seconds."""
    words = ("--partition=high", f"--nodes={len(job.slurm.nodes)}", "--exclusive", "--output=/dev/null")
    job.slurm.ask("sbatch", *words, "--wrap=sleep 5")


def shorten(job: Running) -> None:
    """SLURM's own signal ahead of a time limit: it is lowered while the job runs, and raised for the next start."""
    hours, minutes, seconds = map(int, job.slurm.job(job.number)["RunTime"].split(":"))
    spent = 3600 * hours + 60 * minutes + seconds
    limit = (spent + SAVE_SECONDS) // 60 + 1  # the signal comes within a minute, or is due
    job.slurm.ask("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    wait_for(lambda: int(job.slurm.job(job.number)["Restarts"]) > 0, lambda: job.output)
    job.slurm.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")


def requeue(job: Running) -> None:
    job.slurm.ask("scontrol", "requeue", job.number)


def cancel(job: Running) -> None:
    """With a link of a chain that waits for the end of the job, however it ends."""
    variables = [f"{name}={value}" for name, value in with_ledger(job.slurm, job.run).items()]
    words = ["sbatch", "--parsable", f"--dependency=afterany:{job.number}", job.run / "slurm" / "job.sbatch"]
    link = job.slurm.ask("env", *variables, *words).strip()
    job.slurm.ask("scancel", job.number)
    wait_for(lambda: job.slurm.job(link)["JobState"] not in GOING, lambda: job.output)


def fill_disk(seconds: float) -> Callable[[Running], None]:
    def fill(job: Running) -> None:
        filler = job.slurm.disk / "filler"
        with filler.open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue
        time.sleep(seconds)
        filler.unlink()

    return fill


def hang_disk(seconds: float) -> Callable[[Running], None]:
    """Every write waits: the server of the run folder is away."""

    def hang(job: Running) -> None:
        job.slurm.freeze(still=True)
        try:
            time.sleep(seconds)
        finally:
            job.slurm.freeze(still=False)

    return hang


FAULTS: dict[str, Callable[[Running], None]] = {
    "worker killed": kill_worker,
    "launcher killed": kill_launcher,
    "node loses its power": lose_node,
    "first node loses its power": lose_first_node,
    "cable cut for 3 s": cut_cable(3),
    "cable cut for 60 s": cut_cable(60),
    "slurmd killed, node given up": kill_daemon,
    "slurmd restarted": restart_daemon,
    "controller away for 10 s": controller_away(10),
    "preempted by a higher partition": preempt,
    "time limit": shorten,
    "scontrol requeue": requeue,
    "scancel, next link of a chain": cancel,
    "disk full for 15 s": fill_disk(15),
    "writes hang for 30 s": hang_disk(30),
}


class Step(NamedTuple):
    """One execution of a step by one process."""

    step: int
    rows: list[list[int]]
    time: float
    process: str


class Ledger(NamedTuple):
    """All executions of all processes, and when each process began, all in seconds since 1970."""

    steps: list[Step]
    began: dict[str, float]


def ledger(job: Running) -> Ledger:
    steps, began = [], {}
    for file in job.ledgers:
        for entry in map(json.loads, file.read_text().splitlines()):
            if "began" in entry:
                began[file.name] = entry["began"]
            else:
                steps.append(Step(entry["step"], entry["rows"], entry["time"], file.name))
    return Ledger(sorted(steps, key=lambda step: step.time), began)


def rows_seen(job: Running) -> dict[int, set[str]]:
    """For each step the rows of every rank, of every time it was done: as many as there are ranks, if all is well."""
    seen: dict[int, set[str]] = {}
    for step in ledger(job).steps:
        seen.setdefault(step.step, set()).add(json.dumps(step.rows))
    return seen


def differences(job: Running, undisturbed: Running, last_step: int) -> list[str]:
    """A sentence for everything that is not as in the undisturbed run."""
    found = []
    curves = [[(record["step"], record["loss"]) for record in metrics(one.run)] for one in (job, undisturbed)]
    if [step for step, _ in curves[0]] != list(range(1, last_step + 1)):
        found.append("metrics.jsonl does not hold each step once")
    if curves[0] != curves[1]:
        found.append("another loss")
    weights = Path("checkpoints") / f"step-{last_step:08d}" / "model.safetensors"
    if not (job.run / weights).exists():
        found.append("no checkpoint of the last step")
    elif (job.run / weights).read_bytes() != (undisturbed.run / weights).read_bytes():
        found.append("other weights")
    seen, expected = rows_seen(job), rows_seen(undisturbed)
    if other := [step for step in expected if seen.get(step) != expected[step]]:
        found.append(f"other rows in {len(other)} steps from {other[0]} on")
    return found


class Cost(NamedTuple):
    """Seconds that a fault cost a run beside its steps, and the parts of it."""

    waiting: float  # until it was noticed, the old processes had ended, and new ones were begun
    start_up: float
    again: float  # steps done once more
    steps_again: int

    @property
    def seconds(self) -> float:
        return self.waiting + self.start_up + self.again


def cost(job: Running) -> Cost:
    """From the ledger: every gap of more than two seconds between two steps that count in the end."""
    book = ledger(job)
    last: dict[int, Step] = {}
    for step in book.steps:
        last[step.step] = step
    order = [last[number] for number in sorted(last)]
    waiting = start_up = again = 0.0
    steps_again = 0
    for before, after in itertools.pairwise(order):
        gap = after.time - before.time
        if gap < 2.0:
            continue
        began = book.began[after.process]
        if began < before.time:  # the same processes go on
            waiting += gap
            continue
        old = {process for process, moment in book.began.items() if moment < before.time}
        lost = [step for step in book.steps if before.time < step.time < after.time and step.process in old]
        lost = [step for step in lost if step.step >= after.step]  # not the same step of another rank
        until = max((step.time for step in lost), default=before.time)
        again += until - before.time
        steps_again += len({step.step for step in lost})
        start_up += min(after.time - began, after.time - until)
        waiting += max(0.0, began - until)
    return Cost(waiting, start_up, again, steps_again)
