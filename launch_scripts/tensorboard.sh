#!/usr/bin/env bash
# TensorBoard of a run, or of a folder of runs, for this machine alone; prints how to look at it from another one.
#
#   launch_scripts/tensorboard.sh RUN
#
#   PORT     (6006, or a free one where that is taken)
#   PYTHON   the environment's Python (.venv of the project, else python3)
set -euo pipefail

if [ $# -ne 1 ] || [[ $1 == -* ]]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0" >&2
    exit 2
fi
if [ ! -d "$1" ]; then
    echo "tensorboard.sh: $1: no such folder; give a run's folder, or one with several runs" >&2
    exit 2
fi

project=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$project/.venv/bin/python}
[ -x "$python" ] || python=${PYTHON:-python3}

choose='
import socket, sys
for port in (int(sys.argv[1]), 0):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        print(probe.getsockname()[1])
        break
'
if ! port=$("$python" -c "$choose" "${PORT:-6006}"); then
    echo "tensorboard.sh: PORT=${PORT:-6006} is no port, or $python is no Python; set PORT and PYTHON" >&2
    exit 2
fi
echo "TensorBoard of $1: http://127.0.0.1:$port/#custom_scalars"
echo "From another machine: ssh -N -L $port:127.0.0.1:$port ${USER:-$(id -un)}@$(hostname -f 2>/dev/null || hostname)"
exec "$python" -m tensorboard.main --logdir "$1" --host 127.0.0.1 --port "$port"
