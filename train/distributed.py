"""Who am I among the ranks, and the few small host-side agreements between them."""

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
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from train.errors import BertmaeError, CheckpointError, DataError, NonFiniteError, StoppedError, UserError
from train.pulse import WAITING, Pulse

_Result = TypeVar("_Result")
_ERRORS: dict[int, type[BertmaeError]] = {
    error.exit_code: error for error in (UserError, DataError, CheckpointError, NonFiniteError, StoppedError)
}
_TIMEOUT = timedelta(hours=2)  # above every limit of the watchdog, which tells more


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among `world_size` processes; `device` is where its model lives."""

    rank: int
    world_size: int
    local_rank: int
    device: torch.device
    host_group: dist.ProcessGroup | None  # gloo: agreements on the host never wait for the device
    pulse: Pulse = field(default_factory=Pulse, compare=False)

    def sum(self, values: Sequence[int]) -> list[int]:
        """Element-wise sum over all ranks of a few host integers."""
        total = torch.tensor(values, dtype=torch.int64)
        if self.world_size > 1:
            before = self.pulse.says(WAITING)
            dist.all_reduce(total, group=self.host_group)
            self.pulse.says(before)
        return [int(value) for value in total.tolist()]

    def barrier(self) -> None:
        """Return once every rank has come here."""
        self.sum([0])


def environment() -> tuple[int, int, int]:
    """(rank, world size, local rank) as torchrun's variables say; a single process where there are none.

    Raises UserError when only a part of the variables is there.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    missing = [name for name in names if name not in os.environ]
    if len(missing) == len(names):
        return 0, 1, 0
    if missing:
        raise UserError(f"{', '.join(missing)} not set beside the other torchrun variables: start with torchrun")
    try:
        rank, world_size, local_rank = (int(os.environ[name]) for name in names)
    except ValueError as error:
        raise UserError(f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers: {error}") from error
    return rank, world_size, local_rank


def start() -> Ranks:
    """Join the process group: NCCL between GPUs, gloo between CPU processes.

    Raises UserError when torchrun's variables are there in part, or this node has fewer GPUs than ranks.
    """
    rank, world_size, local_rank = environment()
    if world_size == 1 and not {"RANK", "MASTER_ADDR"} <= os.environ.keys():
        # Alone, whatever MASTER_ADDR a login shell may hold.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(local_rank)}
    if "MASTER_ADDR" not in os.environ:
        raise UserError("MASTER_ADDR not set beside the other torchrun variables: start with torchrun")
    device = _device(local_rank)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        timeout=_TIMEOUT,
        world_size=world_size,
        rank=rank,
        store=_store_of_this_start(),
        device_id=device if device.type == "cuda" else None,
    )
    host_group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if backend == "nccl" else dist.group.WORLD
    return Ranks(rank, world_size, local_rank, device, host_group)


def starts_before() -> int:
    """How often torchrun has started this rank before, after a worker had failed."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))


def _store_of_this_start() -> PrefixStore | None:
    """torchrun's store keeps the addresses of dead workers, and a restart would connect to them (pytorch#135712): here
    is a part of it that they have not seen. None where the store is new, or another node may have counted otherwise.
    """
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if not (shared and starts_before() and os.environ.get("GROUP_WORLD_SIZE") == "1"):
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=_TIMEOUT, wait_for_workers=False)
    return PrefixStore(f"start-{starts_before()}", store)


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
    failed = ranks.sum([int(failure is not None and ranks.rank == i) for i in range(ranks.world_size)])
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
