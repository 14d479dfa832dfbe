"""Jobs on a real SLURM under what clusters do: each ends as a run that nothing happened to; a table in Markdown.

    python benchmarks/chaos_cluster.py SHARDS [--proctrack linuxproc] [--steps N] [--only PATTERN] [--output FILE.md]

SHARDS is a folder of `python -m data_pipeline build` with held-out documents, as `make demo` leaves one at
runs/demo/data/shards. Needs root on Debian or Ubuntu: SLURM's packages are installed, and three nodes are namespaces of
this machine (tests/e2e/slurm/cluster.py). A job wants two of them, a rank on each, CPU, fp32, dropout on. Every fault
gets a job of its own, submitted by `python -m train submit`, and nobody touches the job after the fault.
"""

import argparse
import re
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

from e2e_commands import TINY  # noqa: E402
from slurm.cluster import cluster, proctracks, why_not  # noqa: E402
from slurm.faults import FAULTS, SAVE_SECONDS, Cost, Running, cost, differences, ended, reached, starts, submitted  # noqa: E402

PACE = 0.6  # seconds that a step takes at least: SLURM may be a minute late with its signal
AT, INTERVAL = 50, 20  # the step after which a fault comes, and that of checkpoints
SETTINGS = [f"checkpoint.interval_steps={INTERVAL}", "checkpoint.keep_last=1"]
SETTINGS += ["validation.interval_steps=100000", "validation.max_rows=8"]
BETWEEN_FAULTS = 600  # seconds, simulated
AGAIN = 30.0  # seconds of steps lost on average where checkpoints are a minute apart
UNSAVED = {  # the ranks have no time for a checkpoint, though one may just have been there
    "worker killed",
    "launcher killed",
    "node loses its power",
    "first node loses its power",
    "cable cut for 60 s",
    "slurmd killed, node given up",
}


class Row(NamedTuple):
    """A fault and what became of the run."""

    fault: str
    cost: Cost
    starts: int
    seconds: float
    problems: list[str]


def main() -> None:
    """One job after the other; exit code 1 where a run ended differently."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--proctrack", choices=("cgroup", "linuxproc"), default=proctracks()[0])
    parser.add_argument("--slurmd-timeout", type=int, default=10, help="after which a node is given up (%(default)s s)")
    parser.add_argument("--only", default="", help="faults whose names this regular expression finds")
    parser.add_argument("--output", type=Path, help="write the table here, too")
    parser.add_argument("--keep", type=Path, help="copy what the jobs said into this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # with the cluster's own end
    if reason := why_not():
        sys.exit(reason)
    faults = [fault for fault in FAULTS if re.search(options.only, fault)]
    words = [
        "--save-seconds",
        str(SAVE_SECONDS),
        "configs/demo.yaml",
        f"data.path={options.shards.resolve()}",
        *TINY,
        *SETTINGS,
    ]
    words += [f"run.steps={options.steps}"]
    with cluster(3, options.proctrack, slurmd_timeout=options.slurmd_timeout, disk=True) as slurm:
        reference = submitted(slurm, slurm.disk / "undisturbed", *words)
        if ended(reference)["JobState"] != "COMPLETED":
            sys.exit(reference.output)
        rows = []
        for number, fault in enumerate(faults):
            rows.append(meet(slurm, reference, slurm.disk / f"run-{number}", fault, words, options))
            print(*rows[-1], sep=" | ", file=sys.stderr, flush=True)
            if options.output:  # after each, for it takes long
                options.output.write_text(table(rows, options), encoding="utf-8")
    print(table(rows, options))
    sys.exit(any(row.problems for row in rows))


def meet(slurm, undisturbed: Running, run: Path, fault: str, words: list[str], options: argparse.Namespace) -> Row:
    """A job from its submission to its end, with the fault on the way."""
    problems = []
    began = time.monotonic()
    job = submitted(slurm, run, *words, pace=PACE)
    try:
        reached(job, AT)
        FAULTS[fault](job)
        fields = ended(job)
        if fields["JobState"] != ("CANCELLED" if "scancel" in fault else "COMPLETED"):
            problems.append(f"the job is {fields['JobState']}")
        problems += differences(job, undisturbed, options.steps)
        found = Row(fault, cost(job), starts(job), time.monotonic() - began, problems)
    except (AssertionError, OSError, KeyError) as error:
        problems.append(f"{type(error).__name__}: {error}"[:300])
        found = Row(fault, Cost(0.0, 0.0, 0.0, 0), 0, time.monotonic() - began, problems)
        if job.number in slurm.ask("squeue", "-h", "-o", "%i").split():
            slurm.ask("scancel", "--signal=KILL", "--full", job.number)
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        (options.keep / f"{run.name}.txt").write_text(f"{fault}\n{job.output}")
    wait_until_idle(slurm)
    shutil.rmtree(run, ignore_errors=True)
    return found


def wait_until_idle(slurm) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        idle = slurm.ask("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N").split()
        if len(idle) == len(slurm.nodes) and not slurm.ask("squeue", "-h"):
            return
        for node in set(slurm.nodes) - set(idle):
            state = slurm.ask("sinfo", "-h", "-n", node, "-o", "%T").strip()
            if state.startswith(("down", "drain")):
                print(f"{node} is {state}: {slurm.ask('sinfo', '-h', '-n', node, '-o', '%E').strip()}", file=sys.stderr)
                slurm.ask("scontrol", "update", f"NodeName={node}", "State=RESUME")
        time.sleep(1)
    raise TimeoutError(slurm.ask("sinfo", "-N", "-l"))


def table(rows: list[Row], options: argparse.Namespace) -> str:
    """A row for each fault, and the goodput with one of them every ten minutes."""
    lines = [
        "| fault | s lost | of these waiting | start-up | steps done again | starts | same end | goodput |",
        "|---|---|---|---|---|---|---|---|",
    ]
    shares = []
    for row in rows:
        again = AGAIN if row.fault in UNSAVED or row.cost.steps_again else 0.0
        share = 1 - (row.cost.waiting + again) / BETWEEN_FAULTS
        shares.append(share)
        same = "; ".join(row.problems) or "yes"
        lines.append(
            f"| {row.fault} | {row.cost.seconds:.1f} | {row.cost.waiting:.1f} | {row.cost.start_up:.1f} "
            f"| {row.cost.again:.1f} ({row.cost.steps_again}) | {row.starts} | {same} | {100 * share:.0f} % |"
        )
    equal = sum(not row.problems for row in rows)
    with_start = statistics.mean(s - row.cost.start_up / BETWEEN_FAULTS for s, row in zip(shares, rows, strict=True))
    beside, goodput = 100 * statistics.mean(shares), 100 * with_start
    lines += [
        "",
        f"proctrack/{options.proctrack}, SlurmdTimeout={options.slurmd_timeout}, {options.steps} steps, a checkpoint "
        f"every {INTERVAL}. {equal} of {len(rows)} runs have every step once, losses and weights of the undisturbed "
        "run bit for bit, and in each step the same rows, by a ledger of every execution. Manual steps: 0.",
        f"Goodput with one fault every {BETWEEN_FAULTS // 60} minutes, each kind as often: {beside:.1f} % beside "
        f"start-up, {goodput:.1f} % with it. Computed from the measured waiting and start-up; for steps done again "
        f"{AGAIN:.0f} s where there is no time to save, as with `checkpoint.interval_minutes: 1`.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
