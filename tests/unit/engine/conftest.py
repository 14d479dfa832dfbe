"""What the tests of the training engine share: a small configuration, the log, scripts in processes of their own."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from train.config import Config
from train.config_file import load_config
from train.monitor.logs import log

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

SMALL = """
run: {steps: 100}
data: {path: shards, sequence_length: 16}
model:
  encoder: {hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 16,
            max_position_embeddings: 16, hidden_dropout_prob: 0.0}
batch: {global_batch_size: 8, micro_batch_size: 2}
schedule: {warmup_steps: 10}
engine: {ds_config: ds_configs/zero2.json, precision: fp32}
"""


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    """`configure("run.steps=7", ...)`: a small configuration with overrides, by the road of the command line."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the run's log says from INFO on."""
    log.addHandler(caplog.handler)
    before = log.level, log.propagate
    log.setLevel(logging.INFO)  # assigned, the level would leave what is remembered of the one before
    log.propagate = False
    yield caplog
    log.removeHandler(caplog.handler)
    log.setLevel(before[0])
    log.propagate = before[1]


@pytest.fixture
def start_script() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start `script.py` of this folder as a process that knows nothing of torchrun, unless `variables` say so.

    With `stdin` it has an input, which stays open. Every process ends with the test.
    """
    started: list[subprocess.Popen] = []

    def start(
        script: str, *arguments: object, wrapper: tuple[str, ...] = (), stdin: int | None = None, **variables: object
    ) -> subprocess.Popen:
        environment = {name: value for name, value in os.environ.items() if name not in TORCHRUN}
        environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment |= {name: str(value) for name, value in variables.items()}
        command = [*wrapper, sys.executable, str(HERE / f"{script}.py"), *map(str, arguments)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, env=environment, stdin=stdin, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        with process:
            pass  # closes the pipes and waits


@pytest.fixture
def run_script(start_script) -> Callable[..., list[str]]:
    """Run `script.py` of this folder to its end; the lines it printed."""

    def run(script: str, *arguments: object, **options: object) -> list[str]:
        process = start_script(script, *arguments, **options)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        return output.splitlines()

    return run
