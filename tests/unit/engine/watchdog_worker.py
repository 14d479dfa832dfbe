"""A process under the watchdog: watchdog_worker.py RUN SECONDS BEHAVIOUR. It ends with 0 where it is let."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from train import distributed, watchdog
from train.pulse import WAITING
from train.watchdog import Limits, Watchdog

watchdog._PATIENCE = 2.0
run, limit, behaviour = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]


def sleeps_for_ever():
    time.sleep(3600)


def holds_the_lock_of_the_interpreter():
    ctypes.PyDLL(None).sleep(3600)


def lives(pulse):
    for _ in range(30):
        pulse.says("validates")
        time.sleep(limit / 10)


def is_helped(pulse):
    """The main thread waits for one that works."""

    def work():
        pulse.is_helped_by_this_thread()
        for _ in range(30):
            sum(range(10_000))
            time.sleep(limit / 10)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def main():
    ranks = distributed.start()
    pulse = ranks.pulse
    guard = Watchdog(ranks, Limits(None, limit), run)
    if behaviour != "starts":
        pulse.step = 7
    pulse.says("trains")
    if behaviour == "starts":
        time.sleep(3 * limit)
    elif behaviour == "lives":
        lives(pulse)
    elif behaviour == "is helped":
        is_helped(pulse)
    elif behaviour == "holds the lock":
        time.sleep(limit / 2)
        holds_the_lock_of_the_interpreter()
    elif behaviour == "all wait":
        pulse.says(WAITING)
        sleeps_for_ever()
    elif behaviour == "first lives":
        if ranks.rank == 0:
            lives(pulse)
        ranks.barrier()
    else:
        sleeps_for_ever()
    guard.close()
    os._exit(0)


if __name__ == "__main__":
    main()
