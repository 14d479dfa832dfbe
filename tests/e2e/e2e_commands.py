"""The real commands in processes of their own, and what they leave behind."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = [
    "data.sequence_length=64",
    "model.encoder.hidden_size=32",
    "model.encoder.num_attention_heads=2",
    "model.encoder.intermediate_size=64",
    "model.encoder.max_position_embeddings=64",
    "model.encoder.hidden_dropout_prob=0.1",
    "batch.global_batch_size=8",
    "batch.micro_batch_size=2",
    "schedule.warmup_steps=5",
    "engine.precision=fp32",
    "logging.interval_steps=1",
]


def environment() -> dict[str, str]:
    """One thread a process, as on a node where every rank has its share; no variables of an outer torchrun."""
    outer = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}
    kept = {name: value for name, value in os.environ.items() if name not in outer}
    return kept | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def command(*words: object, timeout: float = 240, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python -m ...` in `folder`, to its end.

    Commands of training are forks of a process that has imported everything, unless a test has changed a variable;
    `start` and all ranks under torchrun are processes that begin with nothing.
    """
    variables = environment()
    if words[0] == "train" and _inherited(variables) == _inherited(warm_variables()):
        return _forked([str(word) for word in words], timeout, folder)
    return subprocess.run(
        [sys.executable, "-m", *map(str, words)],
        cwd=folder,
        env=variables | ({} if folder == ROOT else {"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@cache
def warm_variables() -> dict[str, str]:
    """What the warm process gets: called first before any test, when the imports of all tests have set what they do."""
    return environment()


def _inherited(variables: dict[str, str]) -> dict[str, str]:
    """Without what pytest changes at every test, and transformers the first time that it saves or opens a model."""
    changing = ("PYTEST_", "PYTORCH_NVML_BASED_CUDA_CHECK")
    return {name: value for name, value in variables.items() if not name.startswith(changing)}


@cache
def _warm_process() -> subprocess.Popen[str]:
    """One a worker of pytest; it ends when its input does. A session of its own, to be killed with what it runs."""
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("warm_process.py"))],
        cwd=ROOT,
        env=warm_variables() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def _forked(words: list[str], timeout: float, work: Path) -> subprocess.CompletedProcess[str]:
    warm = _warm_process()
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder) / "stdout", Path(folder) / "stderr"
        request = {"words": words, "folder": str(work), "stdout": str(stdout), "stderr": str(stderr)}
        warm.stdin.write(json.dumps(request) + "\n")
        warm.stdin.flush()
        if not select.select([warm.stdout], [], [], timeout + 60)[0]:  # the first one imports for a while
            _warm_process.cache_clear()
            os.killpg(warm.pid, signal.SIGKILL)
            warm.communicate()
            raise subprocess.TimeoutExpired(words, timeout, stdout.read_text(), stderr.read_text())
        code = int(warm.stdout.readline())
        return subprocess.CompletedProcess(words, code, stdout.read_text(), stderr.read_text())


def start(*words: object) -> subprocess.Popen[str]:
    """The same, going on beside the test."""
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def metrics(run: Path) -> list[dict]:
    """All records of a run, read strictly: every line is whole."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def reached(run: Path, step: int, process: subprocess.Popen) -> None:
    """Wait until the run has written the record of `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "metrics.jsonl").exists() and len((run / "metrics.jsonl").read_bytes().splitlines()) >= step:
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.communicate()[0]}")
