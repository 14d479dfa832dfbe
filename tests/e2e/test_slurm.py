"""Jobs on a real SLURM of three nodes: stopped, killed and cancelled, they end as a run that nothing happened to.

benchmarks/chaos_cluster.py measures what each of the faults costs.
"""

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
from e2e_commands import ROOT, environment, metrics
from slurm.cluster import Cluster, cluster, proctracks, why_not
from slurm.faults import (
    FAULTS,
    Running,
    controller_away,
    differences,
    ended,
    reached,
    recorded,
    submit,
    submitted,
    wait_for,
    with_ledger,
)

STEPS = 100
SETTINGS = ["validation.interval_steps=100000", "validation.max_rows=8", f"run.steps={STEPS}"]
SETTINGS += ["checkpoint.interval_steps=25", "checkpoint.keep_last=1"]
LONG = [*SETTINGS, "run.steps=100000", "checkpoint.interval_steps=100000"]


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with cluster(nodes=3, disk=True) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(slurm, tiny, tmp_path_factory) -> Running:
    """Two ranks on one machine, without SLURM."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    launch = [sys.executable, "-m", "train", "launch", "--nproc-per-node", 2, "pretrain"]
    words = list(map(str, [*launch, *tiny, *SETTINGS, f"run.directory={run}"]))
    done = subprocess.run(
        words, cwd=ROOT, env=environment() | with_ledger(slurm, run, 0.0), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return Running(slurm, run, "")


def test_a_job_that_much_happens_to_ends_as_an_undisturbed_run(slurm, undisturbed, tiny):
    """Reference: two ranks without SLURM: losses and weights bit for bit, and the rows of every execution of a step.

    A controller and a slurmd that are started anew and a cable that is cut for 3 s cost nothing; the signal that a
    time limit sends, at a chosen moment, queues the job again; a killed worker is started again within the job.
    """
    run = slurm.disk / "much"
    job = submitted(slurm, run, "--save-seconds", 30, *tiny, *SETTINGS)
    reached(job, 5)
    for fault in (controller_away(3), FAULTS["slurmd restarted"], FAULTS["cable cut for 3 s"]):
        fault(job)
    slurm.ask("scancel", "--batch", "--signal=USR1", job.number)
    wait_for(lambda: "start 2 on" in job.output, lambda: job.output)
    stopped = int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    reached(job, stopped + 3)
    FAULTS["worker killed"](job)
    fields = ended(job)
    assert (fields["JobState"], fields["Restarts"]) == ("COMPLETED", "1"), job.output
    assert f"stopped at step {stopped} (USR1 on" in job.output and "queued again" in job.output
    assert job.output.rstrip().endswith("done.") and "Traceback" not in job.output
    assert differences(job, undisturbed, STEPS) == []
    assert json.loads((run / "owner.json").read_text())["job"] == job.number


def test_neither_a_mistake_nor_a_cancelled_job_is_queued_again(slurm, tiny, tmp_path):
    """Reference: SLURM's own record of the jobs, which run beside one another on one port's range of one machine.

    The mistake is one that no start can mend; the cancelled run has a checkpoint of its last step; a Python that fails
    at once is tried as often as is said.
    """
    one = ["--nodes", 1, *tiny]
    mistaken = submitted(slurm, tmp_path / "wrong", *one, *SETTINGS, f"data.path={tmp_path}/nothing")
    cancelled = submitted(slurm, tmp_path / "run", *one, *LONG)
    words = ("--export=ALL,PYTHON=/bin/false,MAX_QUICK_FAILURES=2", f"--output={tmp_path}/failing.txt")
    script = ROOT / "launch_scripts" / "slurm_pretrain.sbatch"
    number = slurm.ask("sbatch", "--parsable", "--gpus-per-node=1", *words, script, "none.yaml").strip()
    failing = Running(slurm, tmp_path / "failing", number)
    reached(cancelled, 3)
    slurm.ask("scancel", cancelled.number)
    fields = ended(mistaken)
    assert [fields[name] for name in ("JobState", "ExitCode", "Restarts")] == ["FAILED", "2:0", "0"], mistaken.output
    assert "not queued again" in mistaken.output
    fields = ended(cancelled)
    assert (fields["JobState"], fields["Restarts"]) == ("CANCELLED", "0"), cancelled.output
    assert (cancelled.run / "checkpoints" / "latest").read_text() == f"step-{recorded(cancelled.run):08d}\n"
    fields, said = ended(failing), (tmp_path / "failing.txt").read_text()
    assert (fields["JobState"], fields["Restarts"]) == ("FAILED", "1"), said
    assert "failed with exit code 1 within 10 minutes, 2 times in a row: not queued again" in said


def test_what_sbatch_refuses_is_one_line(slurm, tiny, tmp_path):
    """Reference: the reason that sbatch gives, and no job."""
    done = submit(slurm, tmp_path / "run", "--partition", "nowhere", *tiny)
    assert done.returncode == 2
    assert done.stderr.startswith("bertmae: sbatch refuses: ") and done.stderr.count("\n") == 1
    assert "invalid partition" in done.stderr.lower()
    assert "Submitted" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "time limit"])  # it has its own test below
def test_a_fault_costs_time_and_nothing_else(fault, slurm, undisturbed, tiny):
    """Reference: as above. Nobody touches the job after the fault."""
    run = slurm.disk / fault.replace(" ", "-").replace(",", "")
    job = submitted(slurm, run, "--save-seconds", 30, *tiny, *SETTINGS)
    reached(job, 40)
    FAULTS[fault](job)
    state = ended(job)["JobState"]
    assert state == ("CANCELLED" if "scancel" in fault else "COMPLETED"), job.output
    assert differences(job, undisturbed, STEPS) == []
    wait_for(lambda: not slurm.ask("squeue", "-h"), lambda: slurm.ask("squeue"))
    for node in slurm.nodes:
        if slurm.ask("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T").strip().startswith(("down", "drain")):
            slurm.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")


@pytest.mark.slow
@pytest.mark.parametrize("proctrack", proctracks())
def test_a_job_that_reaches_its_time_limit_goes_on_by_itself(proctrack, tiny, tmp_path):
    """Reference: every step once; SLURM itself sends the signal, 30 to 90 s after the start.

    Signals come to the task alone under one proctrack, to all its descendants under the other one, twice to some.
    """
    if reason := why_not():
        pytest.skip(reason)
    with cluster(nodes=2, proctrack=proctrack) as slurm:
        job = submitted(slurm, tmp_path / "run", "--save-seconds", 30, "--time", "0:02:00", *tiny, *LONG)
        wait_for(lambda: "start 2 on" in job.output, lambda: job.output)
        assert "stopped ahead of the time limit; queued again" in job.output
        stopped = recorded(job.run)
        reached(job, stopped + 3)
        slurm.ask("scancel", job.number)
        ended(job)
    assert "Going on from" in job.output and "are done again" not in job.output
    assert [record["step"] for record in metrics(job.run)] == list(range(1, recorded(job.run) + 1))
