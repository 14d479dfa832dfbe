"""Jobs on a real SLURM of two nodes: stopped, killed and cancelled, they end as a run that nothing happened to."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_commands import ROOT, command, environment, metrics
from slurm.cluster import Cluster, cluster, why_not

STEPS = 150
SETTINGS = ["checkpoint.interval_steps=25", "validation.interval_steps=100000", "validation.max_rows=8"]
LONG = [*SETTINGS, "run.steps=100000", "checkpoint.interval_steps=100000"]
MINUTES = 6  # that a job may take on a busy machine


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with cluster(nodes=2) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """Two ranks on one machine, without SLURM."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    launch = ["train", "launch", "--nproc-per-node", 2, "pretrain"]
    done = command(*launch, *tiny, *SETTINGS, f"run.steps={STEPS}", f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


def submit(slurm: Cluster, *words: object) -> subprocess.CompletedProcess[str]:
    """`python -m train submit` for two nodes with a process each, where `words` say nothing else."""
    program = [sys.executable, "-m", "train", "submit", "--nodes", 2, "--gpus-per-node", 1, "--time", "0:30:00", *words]
    return subprocess.run(
        list(map(str, program)),
        cwd=ROOT,
        env=environment() | slurm.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def submitted(slurm: Cluster, *words: object) -> str:
    """The number of the job."""
    done = submit(slurm, *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.split("Submitted job ")[1].split(".")[0]


def output(run: Path, number: str) -> str:
    file = run / "slurm" / f"job-{number}.txt"
    return file.read_text() if file.exists() else ""


def wait_for(condition: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + 60 * MINUTES
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def ended(slurm: Cluster, run: Path, number: str) -> dict[str, str]:
    """Wait for the end of a job, which may be queued again meanwhile, and give its fields."""
    going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")
    wait_for(lambda: slurm.job(number)["JobState"] not in going, lambda: output(run, number))
    return slurm.job(number)


def recorded(run: Path) -> int:
    return len((run / "metrics.jsonl").read_bytes().splitlines()) if (run / "metrics.jsonl").exists() else 0


def reached(run: Path, step: int, number: str) -> None:
    wait_for(lambda: recorded(run) >= step, lambda: output(run, number))


def processes(run: Path, words: str) -> list[int]:
    """Those of this run that are `python -m train WORDS`, of whatever node."""
    program = f"^[^ ]*python[^ ]* .*-m train {words}.* {run}/slurm/config.yaml"
    found = subprocess.run(["pgrep", "-f", program], capture_output=True, text=True)
    return [int(number) for number in found.stdout.split()]


def equal(run: Path, undisturbed: Path) -> None:
    """Every step once, with the same losses, and the same weights bit for bit."""
    curves = [[(record["step"], record["loss"]) for record in metrics(path)] for path in (run, undisturbed)]
    assert curves[0] == curves[1]
    weights = Path("checkpoints") / f"step-{STEPS:08d}" / "model.safetensors"
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()


def test_a_job_that_is_stopped_and_loses_a_worker_ends_as_an_undisturbed_run(slurm, undisturbed, tiny, tmp_path):
    """Reference: two ranks without SLURM. The signal is the one that a time limit sends, at a chosen moment."""
    run = tmp_path / "run"
    number = submitted(slurm, *tiny, *SETTINGS, f"run.steps={STEPS}", f"run.directory={run}", "--save-seconds", 30)
    reached(run, 5, number)
    slurm.ask("scancel", "--batch", "--signal=USR1", number)
    wait_for(lambda: "start 2 on" in output(run, number), lambda: output(run, number))
    stopped = int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    reached(run, stopped + 3, number)
    workers = processes(run, "pretrain")
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    job = ended(slurm, run, number)
    said = output(run, number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), said
    assert f"stopped at step {stopped} (USR1 on" in said and "queued again" in said
    assert said.rstrip().endswith("done.")
    equal(run, undisturbed)
    assert json.loads((run / "owner.json").read_text())["job"] == number


def test_neither_a_mistake_nor_a_cancelled_job_is_queued_again(slurm, tiny, tmp_path):
    """Reference: SLURM's own record of the jobs, which run beside one another on one port's range of one machine.

    The mistake is one that no start can mend; the cancelled run has a checkpoint of its last step.
    """
    wrong, run = tmp_path / "wrong", tmp_path / "run"
    one = ["--nodes", 1]
    mistaken = submitted(slurm, *one, *tiny, *SETTINGS, f"data.path={tmp_path}/nothing", f"run.directory={wrong}")
    cancelled = submitted(slurm, *one, *tiny, *LONG, f"run.directory={run}")
    reached(run, 3, cancelled)
    slurm.ask("scancel", cancelled)
    job = ended(slurm, wrong, mistaken)
    assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("FAILED", "2:0", "0"), output(wrong, mistaken)
    assert "not queued again" in output(wrong, mistaken)
    job = ended(slurm, run, cancelled)
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0"), output(run, cancelled)
    assert (run / "checkpoints" / "latest").read_text() == f"step-{recorded(run):08d}\n"


def test_what_sbatch_refuses_is_one_line(slurm, tiny, tmp_path):
    """Reference: the reason that sbatch gives, and no job."""
    done = submit(slurm, *tiny, f"run.directory={tmp_path}/run", "--partition", "nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("bertmae: sbatch refuses: ") and done.stderr.count("\n") == 1
    assert "invalid partition" in done.stderr.lower()
    assert "Submitted" not in done.stdout


@pytest.mark.slow
def test_a_job_that_reaches_its_time_limit_goes_on_by_itself(slurm, undisturbed, tiny, tmp_path):
    """Reference: as above; SLURM itself sends the signal, 30 to 90 s after the start."""
    run, steps = tmp_path / "run", 4000
    slow = ["batch.micro_batch_size=1", "checkpoint.interval_steps=100000"]
    words = [*tiny, *SETTINGS, *slow, f"run.steps={steps}", f"run.directory={run}"]
    number = submitted(slurm, *words, "--save-seconds", 30, "--time", "0:02:00")
    wait_for(lambda: "start 2 on" in output(run, number), lambda: output(run, number))
    assert "stopped ahead of the time limit; queued again" in output(run, number)
    slurm.ask("scancel", number)
    ended(slurm, run, number)
    assert [record["step"] for record in metrics(run)] == list(range(1, recorded(run) + 1))


@pytest.mark.slow
def test_a_launcher_that_is_killed_is_started_again(slurm, undisturbed, tiny, tmp_path):
    """Reference: as above. The other node's launcher would wait for it for ever; srun ends it, and the job goes on."""
    run = tmp_path / "run"
    number = submitted(slurm, *tiny, *SETTINGS, f"run.steps={STEPS}", f"run.directory={run}")
    reached(run, 40, number)
    os.kill(processes(run, "launch")[-1], signal.SIGKILL)
    job = ended(slurm, run, number)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output(run, number)
    equal(run, undisturbed)


@pytest.mark.slow
def test_a_job_whose_node_loses_its_power_goes_on_when_there_is_one_again(undisturbed, tiny, tmp_path):
    """Reference: as above; the job needs two of three nodes."""
    if reason := why_not():
        pytest.skip(reason)
    run = tmp_path / "run"
    with cluster(nodes=3) as slurm:
        number = submitted(slurm, *tiny, *SETTINGS, f"run.steps={STEPS}", f"run.directory={run}")
        reached(run, 40, number)
        slurm.lose_power(slurm.nodes[1])
        job = ended(slurm, run, number)
        assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1, output(run, number)
    equal(run, undisturbed)
