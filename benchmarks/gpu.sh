#!/usr/bin/env bash
# The GPU's tests, where pytest is there, and its benchmark: benchmarks/gpu.sh [--tiny] [--output FILE.md]
# Needs neither DeepSpeed nor webdataset. PYTHON chooses the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
tests=0
if "$python" -c 'import pytest' 2>/dev/null; then
    timeout 120 "$python" -m pytest tests/gpu -q -W default || tests=$?
else
    echo "no pytest: tests/gpu left out"
fi
"$python" benchmarks/gpu.py "$@" || exit
exit "$tests"
