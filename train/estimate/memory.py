"""Memory of a device under each ZeRO stage and offload, as DeepSpeed 0.19 keeps it.

P parameters, N devices, w bytes of a weight in the passes: 2 in bf16 and fp16, 4 in fp32 and under autocast.

    stage            weights          gradients                      optimizer
    0                4 P              4 P                            8 P
    1, bf16          w P              (w + 4) P                      12 P/N
    1, else          w P              4 P + bucket + 4 P/N           12 P/N
    2                w P              2 buckets + 4 P/N              12 P/N    (fp32: at least 8 P/N of gradients)
    3                w P/N + gathered bucket + 4 P/N                 12 P/N    (4 P/N more in the update)
    offload          the same         without the 4 P/N              0; on the host (16 + w) P/N, at stage 3 20 P/N;
                                                                     with accumulation at stages 1 and 2 4 P/N more
    offload of weights                w P/N of the weights lie on the host, too

A bucket is reduce_bucket_size elements of w bytes; a processor has only the pages of it that are used, at most P
elements, and one device makes no second copy of it. What stage 3 has gathered stays until its last use, up to
stage3_max_live_parameters. Offload at the stages 1 and 2 has a buffer of the largest parameter on the device and
another one on the host. Gradients of stage 3 and of stage 1 in bf16 lie in buffers that are always there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from train.config import Config
from train.ds_config import offloads, zero_stage
from train.estimate.activations import Activations

CONTEXT = 1.5e9  # bytes of a GPU that CUDA, NCCL and the libraries take, beside what tensors take
_FRAGMENTS = 0.04  # of a GPU's memory: what the allocator cannot give out
_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 27}  # elements of a chunk (objectives/cross_entropy.py)
_FEWEST_ROWS = 128  # of a chunk


@dataclass(frozen=True, slots=True)
class Model:
    """What the memory depends on beside ZeRO. Activations are those of a token of the data."""

    parameters: int
    vocabulary: int
    hidden_size: int
    activations: Activations
    tokens_per_row: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one device, and of the host for one device."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    temporary: float  # logits, and gradients of activations
    host: float
    stays: bool  # whether gradients are there while a forward pass runs
    update: float = 0.0  # what the optimizer's step takes beside

    @property
    def peak(self) -> float:
        """The most at one time. Gradients that do not stay grow as activations go."""
        passing = max(self.activations + self.temporary, self.update)
        moving = self.gradients + passing if self.stays else max(self.gradients, passing)
        return self.weights + self.optimizer + moving

    def fits(self, capacity: float) -> bool:
        """Whether a GPU with so many bytes has room."""
        return self.peak <= usable(capacity)


def usable(capacity: float) -> float:
    """Bytes of a GPU that tensors can have."""
    return capacity * (1 - _FRAGMENTS) - CONTEXT


def weight_bytes(config: Config) -> int:
    """Of a number in the forward pass' weights."""
    return 4 if config.engine.precision == "fp32" or config.engine.autocast else 2


def memory(
    config: Config,
    ds_config: dict[str, Any],
    model: Model,
    devices: int,
    rows: int,
    *,
    accumulates: bool,
    recomputed: bool | None = None,
    device: str = "cuda",
) -> Memory:
    """Of one of so many devices with micro-batches of so many rows; `recomputed` None is as the configuration says."""
    again = config.model.gradient_checkpointing if recomputed is None else recomputed
    passes = 2 if config.engine.precision != "fp32" else 4  # bytes of an activation
    tokens, stage = rows * model.tokens_per_row, zero_stage(ds_config)
    flat = stage == 1 and _is_flat(config, ds_config)
    weights, gradients, optimizer, host = _state(config, ds_config, model, devices, device, accumulates)
    return Memory(
        weights=weights + (2 * model.parameters if config.engine.autocast else 0),  # autocast keeps its casts
        gradients=gradients,
        optimizer=optimizer,
        activations=tokens * model.activations.per_token(passes, device, recomputed=again),
        temporary=max(_logits(model, tokens, passes, device), tokens * model.activations.temporary(passes)),
        host=host,
        stays=accumulates or stage == 3 or flat,
        update=4 * model.parameters / devices if stage == 3 and not offloads(ds_config) else 0.0,
    )


def _is_flat(config: Config, ds_config: dict[str, Any]) -> bool:
    """Whether stage 1 is that of DeepSpeed's BF16_Optimizer."""
    return config.engine.precision == "bf16" and not config.engine.autocast and not offloads(ds_config)


def _state(
    config: Config, ds_config: dict[str, Any], model: Model, devices: int, device: str, accumulates: bool
) -> tuple[float, float, float, float]:
    """(weights, gradients, optimizer, host), in bytes."""
    zero, stage, width = ds_config["zero_optimization"], zero_stage(ds_config), weight_bytes(config)
    parameters, offload = model.parameters, offloads(ds_config)
    share = parameters / devices
    elements = int(zero.get("reduce_bucket_size", 0))
    bucket = min(elements, parameters) if device == "cpu" else elements
    weights, optimizer = float(width * parameters), 12 * share
    if stage == 0:
        return weights, 4.0 * parameters, 8.0 * parameters, 0.0
    if stage == 1 and _is_flat(config, ds_config):
        return weights, 6.0 * parameters, optimizer, 0.0
    flat = 4 * share if not offload else 0.0  # of this device's share, in fp32
    if stage == 1:
        gradients = 4.0 * parameters + 4 * bucket + flat
    elif stage == 2:
        gradients = (2.0 if devices > 1 else 1.0) * width * bucket + flat
        if width == 4:
            gradients = max(gradients, 2 * flat)
    else:
        gathered = min(parameters, int(zero["stage3_max_live_parameters"])) * width if devices > 1 else 0
        weights, gradients = width * share + gathered, width * bucket + flat
    if not offload:
        return weights, gradients, optimizer, 0.0
    if stage < 3:
        largest = width * model.vocabulary * model.hidden_size
        host = (16 + width + 4 * accumulates) * share + largest
        return weights, gradients + largest, 0.0, host
    host = 20 * share
    if (zero.get("offload_param") or {}).get("device", "none") != "none":
        return weights - width * share, gradients, 0.0, host + width * share
    return weights, gradients, 0.0, host


def _logits(model: Model, tokens: int, passes: int, device: str) -> float:
    """A chunk of logits with its softmax, and the gradient of the vocabulary's matrix in fp32."""
    rows = min(tokens, max(_FEWEST_ROWS, _LOGITS[device] // model.vocabulary))
    chunk = rows * model.vocabulary * (4 if passes == 4 else 4 + 2 * passes)
    return chunk + model.vocabulary * model.hidden_size * (4 if passes == 4 else 4 + passes)
