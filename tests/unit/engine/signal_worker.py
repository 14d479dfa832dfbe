"""Installs the stop request and prints its reason whenever a signal came; `end` on the input ends it."""

import sys

from train.signals import StopRequest


def main():
    stop = StopRequest()
    stop.install()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{stop.reason}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
