"""The other ways to start on a real SLURM: a task for each GPU without torchrun, arrays, chains of jobs, shards."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_commands import ROOT, command, environment, metrics
from slurm.cluster import Cluster, cluster, why_not
from slurm.faults import GOING, wait_for

STEPS = 12
SETTINGS = ["checkpoint.interval_steps=100000", "validation.interval_steps=100000", "validation.max_rows=8"]
SETTINGS += [f"run.steps={STEPS}"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(reason)
    with cluster(nodes=2) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(tiny, tmp_path_factory) -> Path:
    """Four ranks on one machine, without SLURM."""
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    launch = ["train", "launch", "--nproc-per-node", 4, "pretrain"]
    done = command(*launch, *tiny, *SETTINGS, f"run.directory={run}")
    assert done.returncode == 0, done.stderr
    return run


def sbatch(slurm: Cluster, folder: Path, *words: object, **variables: str) -> str:
    """The number of the job, which says all in `folder`/NUMBER.txt."""
    done = subprocess.run(
        list(map(str, ["sbatch", "--parsable", f"--output={folder}/%j.txt", *words])),
        cwd=ROOT,
        env=environment() | {"PYTHON": sys.executable} | slurm.environment | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def states(slurm: Cluster, number: str) -> list[str]:
    """Of the job, or of all tasks of its array."""
    lines = slurm.ask("scontrol", "show", "job", "-o", number).splitlines()
    return [word.removeprefix("JobState=") for line in lines for word in line.split() if word.startswith("JobState=")]


def ended(slurm: Cluster, folder: Path, number: str) -> str:
    """What all jobs have said when this one and all its tasks have ended."""

    def said() -> str:
        return "\n".join(file.read_text() for file in sorted(folder.glob("*.txt")))

    wait_for(lambda: not set(states(slurm, number)) & set(GOING), said)
    return said()


@pytest.mark.parametrize("options", [["--gpus-per-node=2"], ["--gpus-per-task=1"]], ids=["node", "task"])
def test_one_task_for_each_gpu_trains_as_torchrun_does(options, slurm, undisturbed, tiny, tmp_path):
    """Reference: four ranks under torchrun without SLURM. SLURM's GPUs are no real ones: CPU."""
    run = tmp_path / "run"
    train = ["python -m train pretrain", *tiny, *SETTINGS, f"run.directory={run}"]
    line = f"env | grep -c CUDA_VISIBLE_DEVICES; srun --kill-on-bad-exit=1 {' '.join(map(str, train))}"
    folder = Path(sys.executable).parent
    number = sbatch(
        slurm, tmp_path, "--nodes=2", "--ntasks-per-node=2", *options, f"--wrap=export PATH={folder}:$PATH; {line}"
    )
    said = ended(slurm, tmp_path, number)
    assert states(slurm, number) == ["COMPLETED"], said
    curves = [[(record["step"], record["loss"]) for record in metrics(path)] for path in (run, undisturbed)]
    assert curves[0] == curves[1]
    assert len(list(run.glob("log-rank*.txt"))) == 4
    assert said.count(f"Done: {STEPS} steps") == 1, "not rank 0 alone speaks"


def test_a_task_that_dies_ends_all_tasks_and_the_next_link_of_a_chain_goes_on(slurm, undisturbed, tiny, tmp_path):
    """Reference: the undisturbed run. Each link is the same script; the third finds nothing to do."""
    run = tmp_path / "run"
    train = ["python -m train pretrain", *tiny, *SETTINGS, "checkpoint.interval_steps=4", f"run.directory={run}"]
    script = tmp_path / "job.sh"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=2 --ntasks-per-node=2 --gpus-per-node=2\n"
        f"export PATH={Path(sys.executable).parent}:$PATH\n"
        f"srun --kill-on-bad-exit=1 {' '.join(map(str, train))} $LATER\n"
    )
    first = sbatch(slurm, tmp_path, script, LATER="run.max_minutes=0.0001")
    second = sbatch(slurm, tmp_path, f"--dependency=afterany:{first}", script, LATER="")
    third = sbatch(slurm, tmp_path, f"--dependency=afterany:{second}", script, LATER="")
    said = ended(slurm, tmp_path, third)
    assert [states(slurm, number)[0] for number in (first, second, third)] == ["FAILED", "COMPLETED", "COMPLETED"], said
    assert "Nothing to do" in (tmp_path / f"{third}.txt").read_text()
    curves = [[(record["step"], record["loss"]) for record in metrics(path)] for path in (run, undisturbed)]
    assert curves[0] == curves[1]


def test_an_array_is_a_run_for_each_task(slurm, tiny, tmp_path):
    """Reference: the two seeds, which have other losses; the script is that of docs/slurm.md."""
    head = [
        line for line in (ROOT / "launch_scripts/slurm_pretrain.sbatch").read_text().splitlines() if "#SBATCH" in line
    ]
    head = [line for line in head if "--output" not in line and "gpus" not in line]
    words = " ".join([*map(str, tiny), *SETTINGS, "run.seed=$SLURM_ARRAY_TASK_ID"])
    script = tmp_path / "array.sbatch"
    last = f"exec bash launch_scripts/slurm_pretrain.sbatch {words} run.directory={tmp_path}/seed-$SLURM_ARRAY_TASK_ID"
    script.write_text("\n".join(["#!/usr/bin/env bash", *head, last]) + "\n")
    number = sbatch(slurm, tmp_path, "--array=0-1", script)
    said = ended(slurm, tmp_path, number)
    assert states(slurm, number) == ["COMPLETED"] * 2, said
    losses = [[record["loss"] for record in metrics(tmp_path / f"seed-{seed}")] for seed in (0, 1)]
    assert len(losses[0]) == len(losses[1]) == STEPS and losses[0] != losses[1]


def test_shards_built_by_srun_with_mpi_are_those_of_one_process(slurm, shards, tmp_path):
    """Reference: every byte of every shard, built without MPI; the job is cancelled on its way and submitted again."""
    if not (Path(sys.executable).parent / "mpiexec").exists():
        pytest.skip("no MPI in this environment: pip install mpich")
    source = ["--input", shards.parent / "text.jsonl", "--tokenizer", shards.parent / "tokenizer"]
    given = [*source, "--output", tmp_path / "shards", "--validation-fraction", 0.05]
    words = ["--nodes=2", "--ntasks-per-node=2", ROOT / "launch_scripts/slurm_build_shards.sbatch", *given]
    first = sbatch(slurm, tmp_path, *words)
    wait_for(lambda: (tmp_path / "shards").exists(), lambda: "no output")
    slurm.ask("scancel", first)
    ended(slurm, tmp_path, first)
    second = sbatch(slurm, tmp_path, *words)
    said = ended(slurm, tmp_path, second)
    assert states(slurm, second) == ["COMPLETED"], said
    for path in sorted(shards.rglob("*.tar")):
        assert (tmp_path / "shards" / path.relative_to(shards)).read_bytes() == path.read_bytes()
    assert list(shards.rglob("*.tar"))


def test_shards_built_by_an_array_are_those_of_one_process_each(slurm, shards, tmp_path):
    """Reference: each part built by the command itself; the second submission of the same finds all done."""
    text = (shards.parent / "text.jsonl").read_text().splitlines(keepends=True)
    inputs = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for number, file in enumerate(inputs):
        file.write_text("".join(text[number::3]))
    (tmp_path / "list").write_text("".join(f"{file}\n" for file in inputs))
    given = ["--tokenizer", shards.parent / "tokenizer", "--output", tmp_path / "parts"]
    options = [
        "--array=0-1",
        "--ntasks-per-node=1",
        "--cpus-per-task=2",
        ROOT / "launch_scripts/slurm_build_shards.sbatch",
    ]
    for _ in range(2):
        number = sbatch(slurm, tmp_path, *options, *given, PARTS=str(tmp_path / "list"))
        said = ended(slurm, tmp_path, number)
        assert states(slurm, number) == ["COMPLETED"] * 2, said
    for task, files in ((0, inputs[::2]), (1, inputs[1::2])):
        alone = tmp_path / f"alone-{task}"
        done = command("data_pipeline", "build", "--input", *files, *given[:2], "--output", alone, "--workers", 1)
        assert done.returncode == 0, done.stderr
        for path in alone.rglob("*.tar"):
            assert (tmp_path / "parts" / f"part-{task}" / path.relative_to(alone)).read_bytes() == path.read_bytes()
        assert list(alone.rglob("*.tar"))
