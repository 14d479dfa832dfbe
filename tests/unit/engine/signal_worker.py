"""Installs the stop request and prints its reason for every line of the input, whose end ends it.

With the argument "busy" another thread does that, and the main thread is in C, where no handler of Python's runs. With
"forks" a child of it gets the signal first.
"""

import ctypes
import os
import signal
import sys
import threading
import time

from train.signals import StopRequest


def main():
    stop = StopRequest()
    stop.install()
    if sys.argv[1:] == ["forks"]:
        child = os.fork()
        if not child:
            time.sleep(3600)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        time.sleep(0.5)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if sys.argv[1:] == ["busy"]:
        threading.Thread(target=answer, args=(stop,), daemon=True).start()
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(64)
        libc.pthread_mutex_init(lock, None)
        libc.pthread_mutex_lock(lock)
        libc.pthread_mutex_lock(lock)  # for ever: no signal interrupts it
    answer(stop)


def answer(stop):
    for _ in sys.stdin:
        sys.stdout.write(f"{stop.reason}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
