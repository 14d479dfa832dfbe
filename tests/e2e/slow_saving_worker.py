"""`python -m train` on a file system that is slow: every file of tensors waits SECONDS before it is written."""

import sys
import time

from train import checkpoint
from train.__main__ import main

seconds = float(sys.argv[1])
write = checkpoint.save_file


def write_late(tensors, path):
    time.sleep(seconds)
    write(tensors, path)


checkpoint.save_file = write_late
sys.exit(main(sys.argv[2:]))
