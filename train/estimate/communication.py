"""What devices send each other in a step under DeepSpeed 0.19, and how long that takes on given links.

Rings: an all-reduce of B bytes has each of N devices send 2 (N-1)/N B, a gather or a scatter half of that. What
DeepSpeed calls reduce_scatter at the stages 1 and 2 is an all-reduce of whole buckets, unless a file turns
use_multi_rank_bucket_allreduce off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from train.config import Config
from train.ds_config import offloads, zero_stage
from train.estimate.memory import weight_bytes

_EFFICIENCY = 0.8  # of a link's bytes a second that large messages reach
_LATENCY = 20e-6  # seconds of a collective and of each doubling of the devices
_HIDDEN = 0.5  # of the arithmetic's time: what can hide communication that runs beside it


@dataclass(frozen=True, slots=True)
class Links:
    """Bytes a second in one direction: of a device inside its node, of a node between nodes; and devices of a node."""

    inside: float
    between: float
    devices_per_node: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a device sends in a step, and how many collectives that are."""

    reduced: float  # gradients
    gathered: float  # weights, after the update or at stage 3 before each layer
    collectives: int
    reduces_beside: bool  # overlap_comm
    gathers_beside: bool  # stage 3 prefetches

    @property
    def total(self) -> float:
        return self.reduced + self.gathered


def traffic(config: Config, ds_config: dict[str, Any], parameters: int, devices: int, accumulation: int) -> Traffic:
    """Of one step with so many forward passes."""
    zero, stage, width = ds_config["zero_optimization"], zero_stage(ds_config), weight_bytes(config)
    ring = (devices - 1) / devices
    if devices == 1:
        return Traffic(0, 0, 0, reduces_beside=False, gathers_beside=False)
    weights, beside = ring * width * parameters, bool(zero.get("overlap_comm", False))
    buckets = math.ceil(parameters / int(zero.get("reduce_bucket_size", 5e8)))
    if stage == 0:
        return Traffic(2 * ring * 4 * parameters, 0, buckets, reduces_beside=False, gathers_beside=False)
    if stage == 1:  # at the last pass of a step alone
        wide = 4 if config.engine.precision != "fp16" and not offloads(ds_config) else width
        return Traffic(2 * ring * wide * parameters, weights, 2 * buckets, reduces_beside=beside, gathers_beside=False)
    if stage == 2:
        times = 2 if zero.get("use_multi_rank_bucket_allreduce", True) else 1
        collectives = (accumulation + 1) * buckets
        return Traffic(
            times * weights * accumulation, weights, collectives, reduces_beside=beside, gathers_beside=False
        )
    gathers = 1 if parameters <= int(zero["stage3_max_reuse_distance"]) else 2  # forward, and again backward
    layers = config.model.encoder.num_hidden_layers
    collectives = accumulation * (gathers * layers + buckets)
    sent = weights * accumulation
    return Traffic(sent, gathers * sent, collectives, reduces_beside=beside, gathers_beside=True)


def seconds(sent: Traffic, links: Links, devices: int, arithmetic: float) -> tuple[float, float]:
    """(time of the communication, what of it the step waits for) where the arithmetic takes so many seconds."""
    if devices == 1:
        return 0.0, 0.0
    reduced, gathered = (_transfer(part, links, devices) for part in (sent.reduced, sent.gathered))
    latency = sent.collectives * _LATENCY * (1 + math.log2(devices))
    waits = latency
    for part, beside in ((reduced, sent.reduces_beside), (gathered, sent.gathers_beside)):
        waits += max(0.0, part - _HIDDEN * arithmetic) if beside else part
    return reduced + gathered + latency, waits


def _transfer(sent: float, links: Links, devices: int) -> float:
    """A ring through all nodes is as fast as its slowest link; what it sends leaves each node once."""
    slowest = links.inside if devices <= links.devices_per_node else min(links.inside, links.between)
    return sent / (_EFFICIENCY * slowest)
