"""Joining the other ranks, and the few small host-side agreements with them.

Legend: R ranks.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]

from train.errors import BertmaeError, CheckpointError, DataError, NonFiniteError, StoppedError, UserError
from train.mpi_address import with_address
from train.pulse import WAITING, Pulse
from train.rank_discovery import Place, discover
from train.rendezvous import meet

_Result = TypeVar("_Result")
_ERRORS: dict[int, type[BertmaeError]] = {
    error.exit_code: error for error in (UserError, DataError, CheckpointError, NonFiniteError, StoppedError)
}
# gloo's words, and NCCL's, for the end of a process at the other end of a connection.
_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
_TIMEOUT = timedelta(hours=2)  # above every limit of the watchdog, which tells more
_PATIENCE = 300.0  # seconds: nodes that read their libraries from a slow file system start late


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size` processes; `device` is where its model lives."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    host_group: dist.ProcessGroup | None  # gloo: agreements on the host never wait for the device
    pulse: Pulse = field(default_factory=Pulse, compare=False)
    hosts_R: tuple[str, ...] = ()  # of all ranks

    def sum(self, values: Sequence[int]) -> list[int]:
        """Element-wise sum over all ranks of a few host integers."""
        total = torch.tensor(values, dtype=torch.int64)
        if self.world_size > 1:
            before = self.pulse.says(WAITING)
            dist.all_reduce(total, group=self.host_group)
            self.pulse.says(before)
        return [int(value) for value in total.tolist()]

    def of_all(self, value: int) -> list[int]:
        """A host integer of every rank, in their order, on every rank."""
        return self.sum([value * (rank == self.rank) for rank in range(self.world_size)])

    def gather(self, text: str) -> list[str]:
        """The texts of all ranks, in their order, on every rank."""
        if self.world_size == 1:
            return [text]
        own = torch.tensor(list(text.encode()), dtype=torch.uint8)
        sizes_R = self.of_all(own.numel())
        longest = max(1, *sizes_R)
        padded_R = [torch.zeros(longest, dtype=torch.uint8) for _ in sizes_R]
        own = torch.cat([own, own.new_zeros(longest - own.numel())])
        dist.all_gather(padded_R, own, group=self.host_group)
        return [bytes(padded[:size].numpy()).decode() for padded, size in zip(padded_R, sizes_R, strict=True)]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.sum([0])


def environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as the launcher says; a single process where there is none.

    Raises UserError where the launcher's variables contradict each other.
    """
    return discover(os.environ)[:3]


def start(patience: float = _PATIENCE, timeout: timedelta = _TIMEOUT) -> Ranks:
    """Join the process group: NCCL between GPUs, gloo between CPU processes.

    Waits `patience` seconds for the other ranks. Raises UserError where the launcher's variables contradict each other
    or this node has fewer GPUs than ranks, BertmaeError naming the ranks that do not come.
    """
    pulse = Pulse()
    pulse.start.done("imports")
    place = _settle(discover(os.environ))
    device = _device(0 if place.has_own_device else place.local_rank)
    store, hosts_R = meet(place, device.type, patience)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=timeout,
        world_size=place.world_size,
        rank=place.rank,
        store=PrefixStore("group", store),
        device_id=device if device.type == "cuda" else None,
    )
    host_group = dist.new_group(backend="gloo", timeout=timeout) if backend == "nccl" else dist.group.WORLD
    pulse.start.done("rendezvous")
    return Ranks(*place[:3], device, host_group, pulse, tuple(hosts_R))


def _settle(place: Place) -> Place:
    """Where rank 0 is; libraries find the same in torchrun's variables from here on."""
    if place.world_size == 1 and not place.address:
        # Alone, whatever MASTER_ADDR a login shell may hold.
        place = place._replace(address="127.0.0.1", port=_free_port())
    elif not place.address and place.launcher == "mpiexec":
        place = with_address(place)
    elif not place.address:
        raise UserError("MASTER_ADDR not set beside the other torchrun variables: start with torchrun")
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    os.environ |= {name: str(number) for name, number in zip(names, place[:3], strict=True)}
    os.environ |= {"MASTER_ADDR": place.address, "MASTER_PORT": str(place.port)}
    return place


def starts_before() -> int:
    """How often torchrun has started this rank before, after a worker had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def is_of_lost_rank(error: RuntimeError) -> bool:
    """Whether a collective failed because another process ended: a line is enough, the cause is told elsewhere."""
    return any(words in str(error) for words in _LOST)


def finish() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def together(ranks: Ranks, action: Callable[[], _Result]) -> _Result:
    """Run `action` on every rank; where it fails expectedly on any, all raise that error.

    Without this a rank that meets a missing file ends while the others wait for it in a collective.
    """
    result, failure = None, None
    try:
        result = action()
    except BertmaeError as error:
        failure = error
    failed = ranks.of_all(int(failure is not None))
    if any(failed):
        first = failed.index(1)
        words = [failure.exit_code, str(failure)] if failure else None
        code, text = _broadcast(ranks, words, first)
        raise _ERRORS.get(code, BertmaeError).agreed(text) from failure
    return result  # type: ignore[return-value]


def on_first_rank(ranks: Ranks, action: Callable[[], _Result]) -> _Result:
    """Run `action` on rank 0 alone and give its JSON-like result, or its error, to every rank."""
    result = together(ranks, lambda: action() if ranks.rank == 0 else None)
    return _broadcast(ranks, result, 0)  # type: ignore[no-any-return]


def _broadcast(ranks: Ranks, value: Any, source: int) -> Any:
    """`value` of rank `source` on all ranks, as JSON so that nothing is unpickled."""
    if ranks.world_size == 1:
        return value
    payload = json.dumps(value).encode() if ranks.rank == source else b""
    size = torch.tensor([len(payload)])
    dist.broadcast(size, source, group=ranks.host_group)
    buffer = torch.zeros(int(size), dtype=torch.uint8)
    if ranks.rank == source:
        buffer = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    dist.broadcast(buffer, source, group=ranks.host_group)
    return json.loads(bytes(buffer.numpy()))


def _device(local_rank: int) -> torch.device:
    if not torch.cuda.is_available():
        return torch.device("cpu")
    count = torch.cuda.device_count()
    if local_rank >= count:
        raise UserError(f"local rank {local_rank} has no GPU: this node has {count}; lower --nproc-per-node to {count}")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
