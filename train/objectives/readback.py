"""Small integers on their way from the device to the host."""

from __future__ import annotations

import numpy as np
import torch


class Readback:
    """A copy of a device tensor that is made beside the computation.

    `array()` waits for what was queued before the copy, never for what came after it: ask as late as you can.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._host = tensor
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()

    def array(self) -> np.ndarray:
        """The values on the host."""
        if self._event is not None:
            self._event.synchronize()
        values: np.ndarray = self._host.numpy()
        return values
