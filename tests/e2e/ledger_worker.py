"""`python -m train` that writes down which rows each step has trained: LEDGER-rankN.jsonl of {"step", "rows"}, where a
row is [epoch, number]. Fillers are none."""

import json
import os
import sys
from pathlib import Path

from train.__main__ import main
from train.engine import Engine
from train.training import Training

ledger = Path(f"{sys.argv[1]}-rank{os.environ.get('RANK', '0')}.jsonl").open("a")  # noqa: SIM115 - open to the end
micro_step, step = Engine.micro_step, Training.step
rows: list[tuple[int, int]] = []


def micro_step_and_remember(self, batch, *others, **options):
    rows.extend((batch.epoch, row) for row in batch.row_ids_D.unique().tolist() if row >= 0)
    return micro_step(self, batch, *others, **options)


def step_and_write(self, stop):
    rows.clear()
    done = step(self, stop)
    if done:
        ledger.write(json.dumps({"step": self.position.step, "rows": rows}) + "\n")
        ledger.flush()
    return done


Engine.micro_step, Training.step = micro_step_and_remember, step_and_write
sys.exit(main(sys.argv[2:]))
