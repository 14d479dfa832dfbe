"""How much memory this rank has needed so far."""

from __future__ import annotations

import resource
import sys

import torch

_GB = 1e9
_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss


def memory_peaks(device: torch.device) -> dict[str, float]:
    """GB (1e9 bytes): of a GPU the most that tensors took and that torch reserved, on a CPU the most of the process."""
    if device.type == "cuda":
        peaks = {
            "memory_peak_gb": torch.cuda.max_memory_allocated(device),
            "memory_reserved_gb": torch.cuda.max_memory_reserved(device),
        }
    else:
        peaks = {"memory_peak_gb": _UNIT * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
    return {name: round(size / _GB, 3) for name, size in peaks.items()}
