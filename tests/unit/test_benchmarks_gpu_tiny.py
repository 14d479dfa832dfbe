"""The GPU's benchmark runs from end to end where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_gpu_benchmark_runs_at_a_tiny_size_on_a_cpu(tmp_path: Path) -> None:
    """Reference: the table has every row; ours have a speed, and a row that cannot be measured says why."""
    script, table = ROOT / "benchmarks/gpu.py", tmp_path / "table.md"
    subprocess.run([sys.executable, str(script), "--tiny", "--output", str(table)], check=True, timeout=500)
    lines = table.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]
    names = {row[0] for row in rows}
    assert names == {"bert-base", "bert-large", "modernbert-base", "mae-base", "retromae-base"}
    for name, kind, measured, *others in rows:
        if kind == "ours":
            assert measured == "1" and float(others[0].replace(",", "")) > 0, name
        else:
            assert measured == "1" or measured.startswith(("failed: ", "not done within ")), name
