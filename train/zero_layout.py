"""Which parameter every element of ZeRO's flat shares belongs to.

At stages 1 and 2 a share is a range of a whole group, laid end to end, and may begin inside a parameter; at stage 3 it
holds an equal part of every parameter of a sub-group, whose last ranks' parts end in padding that is never set.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from train.distributed import Ranks
from train.layerwise import Layout, cut


def zero_layout(module: nn.Module, zero: Any, stage: int, ranks: Ranks) -> Layout:
    """The layout of this rank's shares under DeepSpeed's optimizer `zero` at stage 1, 2 or 3. All ranks call it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    sizes = [*(int(getattr(p, "ds_numel", p.numel())) for p in parameters), 1]
    slots = {parameter: slot for slot, parameter in enumerate(parameters)}
    spans = _spans_of_stage_3(zero, slots, ranks.rank) if stage == 3 else _spans_of_flat_groups(zero, slots)

    def total(sums: torch.Tensor) -> torch.Tensor:
        on_device = sums.to(ranks.device)  # shares in host memory: NCCL takes tensors of the device only
        dist.all_reduce(on_device)
        return on_device.to(sums.device)

    blocks = {share: cut(own, share.device) for share, own in spans}
    device = next(iter(blocks)).device
    layout = Layout(blocks, torch.tensor(sizes, dtype=torch.float64, device=device), total)
    _check(layout)
    return layout


def _spans_of_flat_groups(
    zero: Any, slots: dict[nn.Parameter, int]
) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
    for number, group in enumerate(zero.param_groups):
        [share] = group["params"]
        mapped = [(p._hp_mapping, slot) for p, slot in slots.items()]  # type: ignore[attr-defined]
        own = [(m.hp_fragment_address, slot) for m, slot in mapped if m is not None and m.param_group_index == number]
        spans, end = [], 0
        for address, slot in sorted(own, key=lambda pair: int(pair[0].start)):
            spans += [(address.start - end, len(slots)), (address.numel, slot)]
            end = address.start + address.numel
        yield share, [*spans, (share.numel() - end, len(slots))]


def _spans_of_stage_3(
    zero: Any, slots: dict[nn.Parameter, int], rank: int
) -> Iterator[tuple[torch.Tensor, list[tuple[int, int]]]]:
    for share, parameters in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        spans = []
        for parameter in parameters:
            size = parameter.ds_tensor.ds_numel
            used = min(size, max(0, parameter.ds_numel - size * rank))
            spans += [(used, slots[parameter]), (size - used, len(slots))]
        yield share, spans


def _check(layout: Layout) -> None:
    """That every element of every parameter has its place on exactly one rank, whatever DeepSpeed's version."""
    covered_S = torch.zeros_like(layout.numel_S)
    for share, blocks in layout.blocks.items():
        if (held := sum(sum(block.sizes) for block in blocks)) != share.numel():
            raise RuntimeError(f"the pieces of a share of {share.numel()} elements have {held}")
        for block in blocks:
            covered_S.index_add_(0, block.slots_K, covered_S.new_tensor(block.sizes))
    if not torch.equal(layout.total(covered_S)[:-1], layout.numel_S[:-1]):
        raise RuntimeError("DeepSpeed's shares do not hold every element of every parameter once")
