"""Whether every rank has a device, of its own, that nobody else uses."""

from __future__ import annotations

import shutil

import torch

from train.distributed import Ranks
from train.preflight.findings import Finding, ok, on_every_rank, place_of, warning, wrong

_FREE_SHARE = 0.95  # of a GPU's memory beside this process, its libraries' own parts included
_GIGABYTE = 10**9


def check_devices(ranks: Ranks) -> list[Finding]:
    """Called before anything is put on the devices. The same findings on all ranks."""
    twice = _shared_devices(ranks)
    return twice or on_every_rank(ranks, lambda: [_own_device(ranks)])


def _shared_devices(ranks: Ranks) -> list[Finding]:
    own = str(torch.cuda.get_device_properties(ranks.device).uuid) if ranks.device.type == "cuda" else ""
    first: dict[tuple[str, str], int] = {}
    found = []
    for rank, uuid in enumerate(ranks.gather(own)):
        key = (ranks.hosts_R[rank], uuid.strip())
        if uuid.strip() and key in first:
            pair = f"{place_of(ranks, rank)} and rank {first[key]} have the same GPU"
            found.append(wrong(f"devices: {pair}: start as many ranks on a host as it has GPUs"))
        first.setdefault(key, rank)
    return found


def _own_device(ranks: Ranks) -> Finding:
    if ranks.device.type != "cuda":
        if shutil.which("nvidia-smi"):
            return warning("devices: the host has an NVIDIA driver, but torch sees no GPU: see CUDA_VISIBLE_DEVICES")
        return ok("devices: processors, no GPU")
    name = torch.cuda.get_device_name(ranks.device)
    free, total = torch.cuda.mem_get_info(ranks.device)
    used = total - free - torch.cuda.memory_reserved(ranks.device)
    if free < _FREE_SHARE * total:
        words = f"{used / _GIGABYTE:,.1f} of {total / _GIGABYTE:,.1f} GB of the {name} are in use by others"
        return warning(f"devices: {words}: end what nvidia-smi shows there")
    return ok(f"devices: {ranks.world_size} x {name}, each with its rank alone")
