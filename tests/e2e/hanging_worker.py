"""`python -m train` with ranks that hang or are slow: hanging_worker.py FOLDER PLAN... pretrain ...

PLAN is RANK:WHERE:AFTER. At call AFTER of that place on that rank it hangs for ever, once: FOLDER remembers. With
slowSECONDS in place of AFTER every call takes so much longer.
"""

import os
import sys
import time
from pathlib import Path

from train import checkpoint, pretrain
from train.__main__ import main
from train.data.epochs import EpochWalk
from train.engine import Engine

PLACES = {
    "data": (EpochWalk, "batches"),
    "start": (pretrain, "build_objective"),
    "validation": (Engine, "evaluate"),
    "commit": (checkpoint, "save_file"),
}


def hangs_for_ever(marker):
    marker.touch()
    time.sleep(3600)


def works_slowly(seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        sum(range(1000))
        time.sleep(0.05)


def disturb(where, after, folder):
    owner, name = PLACES[where]
    original, calls = getattr(owner, name), 0

    def disturbed(*given, **named):
        nonlocal calls
        calls += 1
        marker = folder / f"{where}-{os.environ['RANK']}"
        if after.startswith("slow"):
            works_slowly(float(after.removeprefix("slow")))
        elif calls == int(after) and not marker.exists():
            hangs_for_ever(marker)
        return original(*given, **named)

    setattr(owner, name, disturbed)


if __name__ == "__main__":
    begin = sys.argv.index("pretrain")
    for plan in sys.argv[2:begin]:
        rank, place, when = plan.split(":")
        if rank == os.environ["RANK"]:
            disturb(place, when, Path(sys.argv[1]))
    code = main(sys.argv[begin:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
