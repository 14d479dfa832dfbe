#!/usr/bin/env bash
# One node: train with all its GPUs, or with NPROC processes, and start again after a worker's death.
#
#   launch_scripts/torchrun_node.sh CONFIG.yaml [key.sub=value ...]
#
#   NPROC         processes (one for each GPU; 1 where there is none)
#   MAX_RESTARTS  starts after the death of a worker, each from the last checkpoint (3)
#   PYTHON        the environment's Python (.venv of the project, else python3)
#
# Ctrl-C, TERM and USR1 stop the run with a checkpoint. Exit codes: 0 done; 2-5 a mistake, said in one line; 75 stopped
# on request, and 1 or 130 otherwise: the same command goes on.
set -euo pipefail

if [ $# -eq 0 ] || [[ $1 == -* ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi

# Files named on the command line are meant from where it was given; the project need not be there.
project=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=${PYTHON:-python3}
if ! command -v "$python" >/dev/null; then
    echo "torchrun_node.sh: $python: no such program; set PYTHON to the Python of the environment" >&2
    exit 2
fi

gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c '^GPU' || true)
if [ "$gpus" -gt 0 ]; then processes=${NPROC:-gpu}; else processes=${NPROC:-1}; fi

exec "$python" -m train launch --nproc-per-node "$processes" --max-restarts "${MAX_RESTARTS:-3}" pretrain "$@"
