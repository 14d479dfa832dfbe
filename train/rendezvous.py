"""Where the ranks of a run meet: a store in rank 0's process; who does not come, and why, is one line.

Legend: R ranks.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any, NamedTuple

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from train.errors import BertmaeError
from train.monitor.logs import log
from train.rank_discovery import Place, host_of

_LOOK_EVERY = 0.05  # seconds
_LAST_WORDS = 10.0  # seconds for the verdict of rank 0 to come after its patience is over
_UNKNOWN_HOST = 10.0  # seconds: a name server may be away for a moment
_WARNS_AFTER = 55.0  # seconds
_NAMED = 8  # ranks, at most, in one line
_LOOPBACK = "127.0.0.1"


class Meeting(NamedTuple):
    """The store of this start, and the host of every rank."""

    store: Store
    hosts_R: list[str]


def meet(place: Place, device: str, patience: float) -> Meeting:
    """Wait `patience` seconds at most until all ranks are here, each with the same kind of `device`.

    Raises BertmaeError: on rank 0 with the ranks that did not come, elsewhere with why rank 0 cannot be reached.
    """
    deadline = time.monotonic() + patience
    store = _open(place, deadline)
    try:
        store.set(f"rank/{place.rank}", json.dumps([socket.gethostname(), device]))
        if place.rank == 0:
            _say_who_came(store, place, deadline)
        store.wait(["all"], timedelta(seconds=max(1.0, deadline - time.monotonic()) + _LAST_WORDS))
        came: dict[str, list[str]] = json.loads(store.get("all"))
    except RuntimeError as error:
        raise BertmaeError(f"rank 0 at {_endpoint(place)} ended while rank {place.rank} waited for all") from error
    if refusal := _refusal(came, place, patience):
        if place.rank == 0:
            time.sleep(1.0)  # the store is in this process, and the others read it
            raise BertmaeError(refusal)
        raise BertmaeError.agreed(refusal)
    return Meeting(store, [came[str(rank)][0] for rank in range(place.world_size)])


def _open(place: Place, deadline: float) -> Store:
    """The store, or a part of torchrun's own that no earlier start has seen."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    is_server = place.rank == 0 and not shared
    if is_server:
        _look_at_own_address(place)
    else:
        _wait_for_port(place, deadline)
    store = _connect(place, max(1.0, deadline - time.monotonic()), is_server=is_server)
    if store is None and is_server:
        raise BertmaeError(
            f"rank 0 cannot listen on port {place.port} of {socket.gethostname()}, another process may have it: "
            "end that one, or set MASTER_PORT (torchrun: --rdzv-endpoint) to a free port"
        )
    if store is None:
        raise BertmaeError(
            f"{_endpoint(place)} does not answer as rank 0: another program has that port; set MASTER_PORT (torchrun: "
            "--rdzv-endpoint) to a free one"
        )
    if not shared:
        return store
    # The agents' store keeps the addresses of dead workers, and a restart would connect to them (pytorch#135712).
    return PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _connect(place: Place, seconds: float, *, is_server: bool) -> TCPStore | None:
    """None where it cannot be. In a thread: with a program that takes connections and says nothing it never ends."""
    opened: list[TCPStore] = []
    # The server takes all addresses of its host. Its own client needs none of them, which may be mistaken.
    address = _LOOPBACK if is_server else place.address

    def connect() -> None:
        patience = timedelta(seconds=seconds)
        with suppress(RuntimeError):
            opened.append(TCPStore(address, place.port, is_master=is_server, timeout=patience, wait_for_workers=False))

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return opened[0] if opened else None


def _look_at_own_address(place: Place) -> None:
    """Rank 0 says at once that the others look for it in vain. Raises BertmaeError for a name that nobody knows."""
    here = socket.gethostname()
    try:
        found = socket.getaddrinfo(place.address, 0, type=socket.SOCK_STREAM)
    except OSError as error:
        raise BertmaeError(
            f"{place.address}: no host of that name; set MASTER_ADDR (torchrun: --rdzv-endpoint) to {here}, the host "
            "of rank 0"
        ) from error
    if not any(_is_own(family, address) for family, _, _, _, address in found):
        log.warning(
            "%s is no address of %s, where rank 0 runs: unless it is passed on to here, set MASTER_ADDR (torchrun: "
            "--rdzv-endpoint) to %s.",
            *(place.address, here, here),
        )


def _is_own(family: int, address: tuple[Any, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except OSError:
        return False
    return True


def _wait_for_port(place: Place, deadline: float) -> None:
    """Until rank 0 listens. A plain connection first: the store's own client fills the terminal with its warnings."""
    began = time.monotonic()
    while True:
        try:
            left = deadline - time.monotonic()
            socket.create_connection((place.address, place.port), timeout=max(0.1, min(5.0, left))).close()
            return
        except OSError as error:
            if isinstance(error, socket.gaierror):
                deadline = min(deadline, began + _UNKNOWN_HOST)
            if time.monotonic() + _LOOK_EVERY >= deadline:
                here = f"rank {place.rank} on {socket.gethostname()}"
                raise BertmaeError(f"{here} cannot reach rank 0 at {_endpoint(place)}: {_reason(error)}") from error
        time.sleep(_LOOK_EVERY)


def _reason(error: OSError) -> str:
    if isinstance(error, socket.gaierror):
        return "no host of that name; set MASTER_ADDR (torchrun: --rdzv-endpoint) to the host of rank 0"
    if isinstance(error, ConnectionRefusedError):
        return (
            "nobody listens on that port; rank 0 did not start, or runs on another host than MASTER_ADDR (torchrun: "
            "--rdzv-endpoint) says"
        )
    return "no answer; the host is down, or a firewall blocks that port: set MASTER_PORT to an open one"


def _say_who_came(store: Store, place: Place, deadline: float) -> None:
    keys_R = [f"rank/{rank}" for rank in range(place.world_size)]
    began, has_warned = time.monotonic(), False
    while not store.check(keys_R) and time.monotonic() < deadline:
        if not has_warned and time.monotonic() - began > _WARNS_AFTER:
            missing = [rank for rank, key in enumerate(keys_R) if not store.check([key])]
            log.warning("Still waiting at %s for %s.", _endpoint(place), _named(missing))
            has_warned = True
        time.sleep(_LOOK_EVERY)
    came = {rank: json.loads(store.get(key)) for rank, key in enumerate(keys_R) if store.check([key])}
    store.set("all", json.dumps(came))


def _refusal(came: dict[str, list[str]], place: Place, patience: float) -> str:
    """What is wrong with the ranks that came, "" where nothing is."""
    if missing := [rank for rank in range(place.world_size) if str(rank) not in came]:
        there = ", ".join(f"{rank} on {came[str(rank)][0]}" for rank in map(int, list(came)[:_NAMED]))
        more = f" and {len(came) - _NAMED} more" if len(came) > _NAMED else ""
        return (
            f"{_named(missing)} did not come within {patience:.0f} s to {_endpoint(place)} (here: rank {there}{more}): "
            "look for their own lines, and whether their hosts reach that one"
        )
    kinds = {device: (rank, host) for rank, (host, device) in reversed(came.items())}
    if len(kinds) > 1:
        words = ", ".join(f"rank {rank} on {host} has {device}" for device, (rank, host) in sorted(kinds.items()))
        return f"the ranks have different devices: {words}: see nvidia-smi and CUDA_VISIBLE_DEVICES there"
    return ""


def _named(ranks: list[int]) -> str:
    """Missing ranks, with their hosts where the launcher says them."""
    more = f" and {len(ranks) - _NAMED} more" if len(ranks) > _NAMED else ""
    hosts = [host_of(os.environ, rank) for rank in ranks[:_NAMED]]
    words = [f"{rank} on {host}" if host else str(rank) for rank, host in zip(ranks, hosts, strict=False)]
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(words) + more


def _endpoint(place: Place) -> str:
    return f"{place.address}:{place.port}"
