"""Runs the workers of these tests on several ranks, and reads what they measured."""

import json
import os
import select
import signal
import subprocess
import sys
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def on_ranks(worker: str, world_size: int, output: Path, *words: object, timeout: float = 400) -> dict:
    """What `worker.py OUTPUT` (or with `words`, which then say where) has written into `output` on that many ranks."""
    warm, errors = _warm_ranks(), output.with_suffix(".errors")
    script, given = str(HERE / f"{worker}.py"), [str(word) for word in words or (output,)]
    request = {"script": script, "words": given, "world_size": world_size, "errors": str(errors)}
    warm.stdin.write(json.dumps(request) + "\n")
    warm.stdin.flush()
    if not select.select([warm.stdout], [], [], timeout)[0]:
        _warm_ranks.cache_clear()
        os.killpg(warm.pid, signal.SIGKILL)
        warm.communicate()
        raise subprocess.TimeoutExpired(script, timeout, stderr=errors.read_text())
    assert int(warm.stdout.readline()) == 0, errors.read_text()[-3000:]
    return json.loads(output.read_text())


@cache
def _warm_ranks() -> subprocess.Popen[str]:
    """One a worker of pytest; it ends when its input does. A session of its own, to be killed with what it runs."""
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        [sys.executable, str(HERE / "warm_ranks.py")],
        cwd=ROOT,
        env=os.environ | settings,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
