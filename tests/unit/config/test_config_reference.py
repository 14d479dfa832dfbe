"""The generated reference of the configuration."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from train.config import field_rows
from train.config_reference import render

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_is_what_the_code_says():
    """Reference: the output of `python -m train config-reference`."""
    assert PAGE.read_text(encoding="utf-8") == render()


def test_every_field_has_a_row_of_four_cells_with_a_sentence():
    """Reference: the list of fields."""
    rows = [line for line in render().splitlines() if line.startswith("| `")]
    assert len(rows) == len(field_rows())
    for row, field in zip(rows, field_rows(), strict=True):
        name, _, _, sentence = row.strip("| ").split(" | ")
        assert name == f"`{field.name}`"
        assert sentence.endswith(".")


def test_a_reader_that_goes_away_ends_a_command_without_a_traceback():
    """Reference: the exit code that shells give to a process which SIGPIPE ended."""
    reading, writing = os.pipe()
    os.close(reading)
    words = [sys.executable, "-m", "train", "config-reference"]
    done = subprocess.run(words, cwd=PAGE.parents[1], stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
