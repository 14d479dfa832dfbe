"""Locks a run folder, says so or why not, and holds it until its input ends."""

import sys
from pathlib import Path

from train.errors import UserError
from train.run_directory import lock


def main():
    try:
        held = lock(Path(sys.argv[1]), patience=0)
    except UserError as error:
        sys.stdout.write(f"{error.exit_code} {error}\n")
        return
    sys.stdout.write("locked\n")
    sys.stdout.flush()
    sys.stdin.read()
    held.close()


if __name__ == "__main__":
    main()
