"""Saves checkpoints where that cannot end well: on a full disk, under a file size limit, killed half-way.

One line of JSON for each try; the tests judge.
"""

import json
import os
import random
import resource
import shutil
import sys
import time
from itertools import count
from pathlib import Path

import torch

from train.checkpoint import newest_whole, read_table, save_checkpoint
from train.errors import BertmaeError

TABLES = ("model", "exp_avg", "exp_avg_sq")
FILES = (*TABLES, "state", "manifest")


def tensors(step, size=16):
    """What a checkpoint of `step` holds: every table another function of the step."""
    return {table: {"w": torch.full((size,), step + i / 4), "b": torch.tensor(i)} for i, table in enumerate(TABLES)}


def save(folder, step, keep_last=2, size=16):
    return save_checkpoint(folder, step, tensors(step, size), {"note": "x" * 50}, keep_last)


def look(folder, size=16):
    """What is there: the newest whole step, whether its tensors are right, and every name in the folder."""
    found, problems = newest_whole(folder)
    names = sorted(path.name for path in folder.iterdir())
    if found is None:
        return {"step": None, "problems": problems, "names": names}
    expected = tensors(found.step, size)
    right = all(
        torch.equal(tensor, expected[table][name])
        for table in TABLES
        for name, tensor in read_table(found.path, table).items()
    )
    return {"step": found.step, "right": right, "problems": problems, "names": names}


def attempt(action):
    """The class, exit code and text of the expected error of `action`, or None."""
    try:
        action()
    except BertmaeError as error:
        return [type(error).__name__, error.exit_code, str(error)]
    return None


def full_disk(folder):
    """`folder` is a small file system of its own: leave one page more of it at every try."""
    for pages in count():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "filler").unlink(missing_ok=True)
        (folder / "checkpoints").mkdir()
        save(folder / "checkpoints", 1)
        free = os.statvfs(folder)
        (folder / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - pages * 4096))
        error = attempt(lambda: save(folder / "checkpoints", 2))
        yield {"error": error, **look(folder / "checkpoints")}
        if error is None:
            return


def file_limit(folder):
    """Every file of a checkpoint in turn is the one that is too long."""
    save(folder, 1)
    for file in FILES:
        long = tensors(2)
        for table in {file} & set(TABLES):
            long[table]["w"] = torch.zeros(5000)
        state = {"note": "x" * (5000 if file == "state" else 50)}
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 if file == "manifest" else 4096, resource.RLIM_INFINITY))
        error = attempt(lambda long=long, state=state: save_checkpoint(folder, 2, long, state, 2))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        yield {"file": file, "error": error, **look(folder)}


def fork(action):
    """A child that runs `action` and ends; its process id."""
    child = os.fork()
    if child:
        return child
    try:
        action()
    finally:
        os._exit(1)


def die_at(operation, folder):
    """From here on, this process kills itself just before the given operation on the files of `folder`."""
    left = [operation]

    def hook(event, arguments):
        if str(folder) in str(arguments) and event.startswith(("open", "os.", "shutil.")):
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), 9)

    sys.addaudithook(hook)


def killed_everywhere(folder):
    """Kill a save before every single operation on the file system; then the next save must clean up."""
    for case, keep_last in (("new", 2), ("keep one", 1), ("replace a damaged one", 1)):
        damaged = case == "replace a damaged one"
        before, run = folder / "before", folder / "run"
        save(before, 1)
        save(before, 2)
        if damaged:
            (before / "step-00000002" / "model.safetensors").write_bytes(b"")
        for operation in count():
            shutil.copytree(before, run)

            def child(run=run, operation=operation, step=2 if damaged else 3, keep_last=keep_last):
                die_at(operation, run)
                save(run, step, keep_last)
                os._exit(0)

            status = os.waitstatus_to_exitcode(os.waitpid(fork(child), 0)[1])
            result = {"case": case, "status": status, **look(run)}
            save(run, 4, keep_last)
            yield {**result, "after": look(run)}
            shutil.rmtree(run)
            if status == 0:
                break
        shutil.rmtree(before)


def killed_at_random(folder, tries):
    """Kill a process that saves as fast as it can; the next one goes on from what is there."""
    rng = random.Random(tries)
    size = 200_000
    save(folder, 1, size=size)
    for _ in range(tries):
        start = look(folder, size)["step"]

        def child(start=start):
            for step in count(start + 1):
                save(folder, step, size=size)

        process = fork(child)
        time.sleep(rng.uniform(0.01, 0.1))
        os.kill(process, 9)
        os.waitpid(process, 0)
        yield {"start": start, **look(folder, size)}


SCENARIOS = {action.__name__: action for action in (full_disk, file_limit, killed_everywhere, killed_at_random)}


def main():
    scenario, folder, *numbers = sys.argv[1:]
    for result in SCENARIOS[scenario](Path(folder), *map(int, numbers)):
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
