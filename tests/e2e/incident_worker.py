"""`python -m train` on data of which some rows are poisoned: their micro-batch's losses are multiplied.

Arguments: a JSON file, then those of `python -m train`. The file has {"factors": {"EPOCH/ROW": factor}, "kill": bool};
a factor may be the word inf or nan. With "kill" rank 0 dies when the decision to go back is on the disk. Each rank
writes the rows of every step that it has done to RUN/ledger-rankN.jsonl.
"""

import json
import os
import signal
import sys
from pathlib import Path

from train import training
from train.__main__ import main
from train.monitor.incidents import Incidents
from train.objectives.joint import Joint

plan = json.loads(Path(sys.argv[1]).read_text())
factors = {name: float(factor) for name, factor in plan["factors"].items()}
decide, forward, remember = training.decide, Joint.forward, Incidents.remember


def rows_of(batch):
    return sorted({f"{batch.epoch}/{row}" for row in batch.row_ids_D.tolist() if row >= 0})


def poisoned(self, batch, selection):
    losses_H, hits_H2 = forward(self, batch, selection)
    for name in rows_of(batch):
        if self.training:  # held-out rows have numbers of their own
            losses_H = losses_H * factors.get(name, 1.0)
    return losses_H, hits_H2


def with_ledger(self, step, batches, cursor):
    remember(self, step, batches, cursor)
    ledger = Path(self._config.run.directory) / f"ledger-rank{self._ranks.rank}.jsonl"
    rows = [name for batch in batches for name in rows_of(batch)]
    with ledger.open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")


def and_die(*arguments):
    if decide(*arguments) is not None:
        os.kill(os.getpid(), signal.SIGKILL)


Joint.forward, Incidents.remember = poisoned, with_ledger
if plan["kill"]:
    training.decide = and_die
code = main(sys.argv[2:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)
