"""A process that has imported what workers need: all ranks are forks of it, with the variables that torchrun sets.

Importing takes longer than most workers. A JSON line in, {"script", "words", "world_size", "errors"}; a line out, the
largest exit code.
"""

import json
import os
import runpy
import signal
import socket
import sys
from multiprocessing import connection, get_context
from pathlib import Path

import train.engine
import train.objectives
import train.probes.open
import train.training_data  # noqa: F401


def run(rank: int, port: int, request: dict, others: list[int]) -> None:
    """One rank, in this process; what it writes goes into the file for errors."""
    for descriptor in others:
        os.close(descriptor)
    errors = os.open(request["errors"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        os.dup2(errors, descriptor)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["world_size"]}
    os.environ |= {
        name: str(value) for name, value in (place | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}).items()
    }
    sys.argv = [request["script"], *request["words"]]
    sys.path[0] = str(Path(request["script"]).parent)
    runpy.run_path(request["script"], run_name="__main__")


def start(request: dict, others: list[int]) -> int:
    """All ranks to their end; one that fails ends the others, as under torchrun."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fork = get_context("fork").Process
    ranks = [fork(target=run, args=(rank, port, request, others)) for rank in range(request["world_size"])]
    for rank in ranks:
        rank.start()
    running, code = {rank.sentinel: rank for rank in ranks}, 0
    while running:
        for sentinel in connection.wait(running):
            ended = running.pop(sentinel)
            ended.join()
            code = code or ended.exitcode
        if code:
            for rank in running.values():
                os.kill(rank.pid, signal.SIGKILL)
    return code


if __name__ == "__main__":
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has none of the other threads"
    for line in os.fdopen(requests):
        os.write(answers, f"{start(json.loads(line), [requests, answers])}\n".encode())
