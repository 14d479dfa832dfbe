"""The demo, shortened: the whole road on Python's own documentation, and at once when it is done."""

import subprocess
import sys
import time

from e2e_commands import ROOT, environment


def demo(folder, *words) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "launch_scripts/demo.py", "--directory", folder, "--steps", "20", *words]
    return subprocess.run(program, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=400)


def test_the_demo_goes_from_text_to_filled_masks_and_says_at_once_when_it_is_done(tmp_path):
    """Reference: the table compares with always guessing the most frequent token; 20 steps teach nothing, 1200 do."""
    done = demo(tmp_path)
    assert done.returncode == 0, done.stderr
    documents = (tmp_path / "data" / "docs.jsonl").read_bytes()
    assert len(documents) > 2_000_000 and documents.count(b"\n") > 3000
    for words in ("tokens/s", "masked language model", "reconstruction (MAE)", "most frequent token", "tensorboard"):
        assert words in done.stdout
    assert done.stdout.count("[MASK] 1:") == 3
    assert "Traceback" not in done.stdout + done.stderr
    began = time.monotonic()
    again = demo(tmp_path)
    assert again.returncode == 0 and "The demo is done" in again.stdout
    assert time.monotonic() - began < 10
