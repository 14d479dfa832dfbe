"""A process under the watchdog: watchdog_worker.py RUN SECONDS BEHAVIOUR. It ends with 0 where it is let."""

import ctypes
import os
import sys
import threading
import time
from pathlib import Path

from train import distributed, watchdog
from train.pulse import WAITING
from train.signals import StopRequest
from train.watchdog import Limits, Watchdog

watchdog._PATIENCE = 2.0
watchdog._FIRST_STEP = 1.0
run, limit, behaviour = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]


def sleeps_for_ever():
    time.sleep(3600)


def holds_the_lock_of_the_interpreter():
    ctypes.PyDLL(None).sleep(3600)


def holds_no_lock():
    """Like a collective: the main thread is in C, and runs no handler of Python's."""
    ctypes.CDLL(None).sleep(3600)


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
    stop = StopRequest()
    guard = Watchdog(ranks, Limits(None, limit), run, stop)
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
    elif behaviour == "is asked in the first step":
        pulse.step, pulse.loses_nothing = None, True
        if ranks.rank == ranks.world_size - 1:
            stop.reason = "SIGUSR1"
        holds_no_lock()
    elif behaviour == "is asked, and the first step ends":
        pulse.step, pulse.loses_nothing = None, True
        stop.reason = "SIGUSR1"
        time.sleep(watchdog._FIRST_STEP / 2)
        pulse.step, pulse.loses_nothing = 1, False
        time.sleep(2 * watchdog._FIRST_STEP)
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
