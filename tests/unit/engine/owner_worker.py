"""Holds a run folder until it is killed: `python owner_worker.py RUN`."""

import sys
import time
from pathlib import Path

from train.ownership import own

with own(Path(sys.argv[1])):
    sys.stdout.write("holds\n")
    sys.stdout.flush()
    time.sleep(600)
