#!/usr/bin/env bash
# Shards with MPI: rank 0 hands out the work and writes the manifest, the others clean, tokenize and write.
#
#   launch_scripts/mpi_build_shards.sh --input FILE... --tokenizer DIR --output DIR [options of data_pipeline build]
#
#   NPROC            ranks (one for each processor, and rank 0)
#   MPIEXEC          the launcher (of the environment, else of the machine)
#   MPIEXEC_OPTIONS  more for it, such as "--hostfile hosts"; the folders must be the same on all hosts
#   PYTHON           the environment's Python (.venv of the project, else python3)
#
# The same command again goes on where it was stopped; what is done is not done twice.
set -euo pipefail

if [ $# -eq 0 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi

project=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$project${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=${PYTHON:-python3}

# mpi4py takes the MPI of its own environment first: its launcher must be of the same kind.
beside=$(dirname "$(command -v "$python" || echo .)")/mpiexec
[ -x "$beside" ] || beside=mpiexec
mpiexec=${MPIEXEC:-$beside}
if ! command -v "$mpiexec" >/dev/null; then
    echo "mpi_build_shards.sh: no mpiexec: pip install mpich, load the cluster's MPI module or set MPIEXEC;" \
        "on one machine $python -m data_pipeline build --workers N needs none" >&2
    exit 2
fi

# shellcheck disable=SC2086  # several options in one variable
exec "$mpiexec" -n "${NPROC:-$(($(nproc) + 1))}" ${MPIEXEC_OPTIONS:-} "$python" -m data_pipeline build "$@"
