"""The console script `bertmae`: the commands of `python -m train` and `python -m data_pipeline` under one name."""

from __future__ import annotations

import sys

_DATA_COMMANDS = ("stdlib-docs", "tokenizer", "build", "verify", "inspect")


def main() -> int:
    """Run the command that the first word names; the exit code."""
    if sys.argv[1:2] and sys.argv[1] in _DATA_COMMANDS:
        from data_pipeline.__main__ import main as command
    else:
        from train.__main__ import main as command
    return command()
