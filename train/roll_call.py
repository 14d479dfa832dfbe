"""Names the nodes whose launcher does not come to the others': torchrun waits for them for minutes without a word."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from train.rank_discovery import hosts_of
from train.start_times import age

_PATIENCE = 50.0  # seconds since the start of the process: a missing node is named within a minute
_LOOK_EVERY = 0.5  # seconds
_LONGEST = 300.0  # seconds; torchrun's own patience is 600
_NAMED = 8  # nodes, at most, in one line


def call_the_roll(endpoint: str, job: str, environment: Mapping[str, str]) -> None:
    """Tell the store at `endpoint`, which torchrun holds, that this node is here; the first node looks who is not.

    Beside the launcher, in a thread. SLURM says which nodes there are; without it nothing is done. `job` is torchrun's
    --rdzv-id.
    """
    node, names = environment.get("SLURM_NODEID", ""), environment.get("SLURM_JOB_NODELIST", "")
    host, _, port = endpoint.rpartition(":")
    if node.isdecimal() and names and host and port.isdecimal():
        threading.Thread(target=_call, args=(host, int(port), job, int(node), hosts_of(names)), daemon=True).start()


def missing(store: TCPStore, job: str, hosts: list[str]) -> list[str]:
    """Those of `hosts`, in the order of their numbers, that have not told the store that they are here."""
    return [host for number, host in enumerate(hosts) if not store.check([_key(job, number)])]


def _call(host: str, port: int, job: str, node: int, hosts: list[str]) -> None:
    deadline = time.monotonic() + max(1.0, _PATIENCE - age())
    with suppress(RuntimeError, OSError):  # what is wrong with the store, torchrun meets too
        _wait_for_port(host, port)
        store = TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=_LONGEST))
        store.set(_key(job, node), socket.gethostname())
        while node == 0 and (late := missing(store, job, hosts)):
            if time.monotonic() > deadline:
                _say(late, f"{host}:{port}")
                return
            time.sleep(_LOOK_EVERY)


def _wait_for_port(host: str, port: int) -> None:
    """Raises OSError after the longest time. A plain connection first: the store's client fills the terminal."""
    end = time.monotonic() + _LONGEST
    while True:
        try:
            socket.create_connection((host, port), timeout=5.0).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
        time.sleep(_LOOK_EVERY)


def _say(late: list[str], endpoint: str) -> None:
    more = f" and {len(late) - _NAMED} more" if len(late) > _NAMED else ""
    nodes = f"{'node' if len(late) == 1 else 'nodes'} {', '.join(late[:_NAMED])}{more}"
    sys.stderr.write(
        f"bertmae: still waiting for {nodes}: no launcher from there has come to {endpoint}; see whether the node "
        "answers, reaches that port, and reads its Python\n"
    )


def _key(job: str, number: int) -> str:
    return f"bertmae-roll/{job}/{number}"
