"""Python that writes down, while it trains, which rows each step took and when: for processes that SLURM starts.

With this folder in PYTHONPATH each process writes LEDGER-HOST-PROCESS-TIME.jsonl: first {"began"}, the start of the
process, then {"step", "rows", "time"} for each step. A row is [epoch, number]; times are seconds since 1970. A step
takes BERTMAE_TEST_PACE seconds at least, so that what happens to a job meets it on a fast machine, too.
"""

import importlib.abc
import importlib.util
import json
import os
import socket
import sys
import time
from pathlib import Path

_WATCHED = "train.training"


class _Watch(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the module as everybody does, and then changes the two functions."""

    def find_spec(self, name, path, target=None):
        if name != _WATCHED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec):
        return self._loader.create_module(spec)

    def exec_module(self, module):
        self._loader.exec_module(module)
        _write_down(module)


def _write_down(module):
    name = f"{os.environ['BERTMAE_TEST_LEDGER']}-{socket.gethostname()}-{os.getpid()}-{time.time_ns()}.jsonl"
    ledger = Path(name).open("a")  # noqa: SIM115 - open to the end
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
    began = time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks)
    rows, pace = [], float(os.environ["BERTMAE_TEST_PACE"])
    micro_step, step = module.Engine.micro_step, module.Training.step

    def write(**entry):
        ledger.write(json.dumps(entry) + "\n")
        ledger.flush()

    def micro_step_and_remember(self, batch, *others, **options):
        rows.extend((batch.epoch, row) for row in batch.row_ids_D.unique().tolist() if row >= 0)
        return micro_step(self, batch, *others, **options)

    def step_and_write(self, stop):
        rows.clear()
        end = time.monotonic() + pace
        done = step(self, stop)
        time.sleep(max(0.0, end - time.monotonic()))
        if done:
            write(step=self.position.step, rows=sorted(rows), time=time.time())
        return done

    write(began=began)
    module.Engine.micro_step, module.Training.step = micro_step_and_remember, step_and_write


if "BERTMAE_TEST_LEDGER" in os.environ:
    sys.meta_path.insert(0, _Watch())
