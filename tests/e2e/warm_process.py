"""A process that has imported what training needs: each command of it is a fork, new in all but what is imported.

Importing takes longer than most commands. A JSON line in, {"words", "folder", "stdout", "stderr"}; a line out, the
exit code.
"""

import json
import os
import runpy
import sys
from multiprocessing import get_context
from pathlib import Path

import torch.distributed.run  # noqa: F401

import train.data_report
import train.engine
import train.export
import train.fill_mask
import train.preflight.check
import train.pretrain  # noqa: F401

os.environ.pop("PYTHONPATH")  # `python -m` finds the project by its folder alone


def run(words: list[str], folder: str, outputs: list[str], others: list[int]) -> None:
    """`python -m` with these words in a folder, in this process; what it writes goes into two files."""
    for descriptor in others:
        os.close(descriptor)
    for descriptor, path in enumerate(outputs, start=1):
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    sys.argv = words
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    requests, answers = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has none of the other threads"
    for line in os.fdopen(requests):
        request = json.loads(line)
        outputs = [request["stdout"], request["stderr"]]
        call = (request["words"], request["folder"], outputs, [requests, answers])
        child = get_context("fork").Process(target=run, args=call)
        child.start()
        child.join()
        os.write(answers, f"{child.exitcode}\n".encode())
