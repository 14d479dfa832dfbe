"""The launch scripts that need no cluster, run as a user runs them: from another folder, by their path."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_commands import ROOT, environment, metrics, reached

SCRIPTS = ROOT / "launch_scripts"
LONG = ["run.steps=100000", "checkpoint.interval_steps=20", "validation.interval_steps=100000", "validation.max_rows=8"]


@pytest.fixture
def begin(tmp_path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a script in an empty folder; it ends with the test, whatever the test found."""
    begun: list[subprocess.Popen[str]] = []

    def begin(script: str, *words: object, **variables: str) -> subprocess.Popen[str]:
        begun.append(
            subprocess.Popen(
                [str(SCRIPTS / script), *map(str, words)],
                cwd=tmp_path,
                env=environment() | {"PYTHON": sys.executable} | variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def test_a_node_starts_again_after_a_workers_death_and_stops_on_usr1(begin, tiny, tmp_path):
    """Reference: the records of every step, each once, up to the one it stopped at; exit code 75.

    USR1 comes to the process that was started, as schedulers send it; torchrun itself would die of it.
    """
    run = tmp_path / "run"
    given = [ROOT / tiny[0], *tiny[1:], *LONG, f"engine.ds_config={ROOT}/ds_configs/zero2.json", f"run.directory={run}"]
    process = begin("torchrun_node.sh", *given, NPROC="2")
    reached(run, 25, process)
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(found) == 2
    os.kill(int(found[0]), signal.SIGKILL)
    log = run / "log-rank0.txt"
    deadline = time.monotonic() + 120
    while "Going on from" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 75, said
    assert "Start 2 of this command" in said and re.search(r"\(USR1 on all ranks\)", said)
    last = int((run / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))
    assert [record["step"] for record in metrics(run)] == list(range(1, last + 1))


def test_a_mistake_on_a_node_keeps_its_exit_code(begin, tmp_path):
    """Reference: the one line and the code of the command itself; without words, how it is used."""
    said = begin("torchrun_node.sh", ROOT / "configs" / "demo.yaml", "run.stepz=1")
    assert "run.stepz" in said.communicate(timeout=120)[0] and said.returncode == 2
    usage = begin("torchrun_node.sh")
    assert "CONFIG.yaml [key.sub=value ...]" in usage.communicate(timeout=20)[0] and usage.returncode == 2


def test_tensorboard_answers_this_machine_alone_and_says_how_to_reach_it(begin, tmp_path):
    """Reference: the addresses at which the machine listens, as the kernel lists them."""
    process = begin("tensorboard.sh", tmp_path, PORT="0")
    lines = [process.stdout.readline() for _ in range(2)]
    port = int(re.search(r"http://127\.0\.0\.1:(\d+)/#custom_scalars\n", lines[0])[1])
    assert f"ssh -N -L {port}:127.0.0.1:{port} " in lines[1]
    deadline = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=10) as answer:
                assert answer.status == 200
            break
        except urllib.error.URLError:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.2)
    tables = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
    listening = [line.split()[1] for line in tables.splitlines() if line.split()[3] == "0A"]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_tensorboard_of_no_folder_is_one_line(begin, tmp_path):
    """Reference: the name that was given."""
    process = begin("tensorboard.sh", tmp_path / "nothing")
    assert process.communicate(timeout=20)[0].count("no such folder") == 1 and process.returncode == 2


def test_shards_built_with_mpi_are_those_of_one_process(shards, begin, tmp_path):
    """Reference: every byte of every shard, built by the command without MPI."""
    if shutil.which("mpiexec", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])) is None:
        pytest.skip("no mpiexec on this machine")
    source = ["--input", shards.parent / "text.jsonl", "--tokenizer", shards.parent / "tokenizer"]
    given = [*source, "--output", tmp_path / "shards", "--validation-fraction", 0.05]
    process = begin(
        "mpi_build_shards.sh", *given, NPROC="3", OMPI_ALLOW_RUN_AS_ROOT="1", OMPI_ALLOW_RUN_AS_ROOT_CONFIRM="1"
    )
    said = process.communicate(timeout=240)[0]
    assert process.returncode == 0, said
    for path in sorted(shards.rglob("*.tar")):
        assert (tmp_path / "shards" / path.relative_to(shards)).read_bytes() == path.read_bytes()
    assert list(shards.rglob("*.tar"))
