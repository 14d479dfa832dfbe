"""LAMB and StableAdamW: AdamW's moments and direction, with one number for each parameter that scales its step.

The number follows from sums over a whole parameter, while under ZeRO the tensors that are updated are flat shares with
pieces of many parameters; the layout says which piece belongs to which, and adds up the sums of all ranks.

Legend: S slots, one for each parameter and a last one for padding; K pieces of a block, B elements of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch

_BLOCK_ON_CPU, _BLOCK = 2**20, 2**24  # elements at a time: what a cache holds; few kernels, yet little memory
_PIECE_ON_CPU = 2**14  # there a norm adds up in one float after the other, and loses a thousandth over 25 million


class Block(NamedTuple):
    """A range of a flat tensor: its begin, the lengths of its pieces, and their slots."""

    start: int
    sizes: list[int]
    slots_K: torch.Tensor


class Layout(NamedTuple):
    """The blocks of every tensor that is updated, the elements of every slot (padding: 1), the sum over all ranks."""

    blocks: dict[torch.Tensor, list[Block]]
    numel_S: torch.Tensor
    total: Callable[[torch.Tensor], torch.Tensor]


def cut(spans: Iterable[tuple[int, int]], device: torch.device) -> list[Block]:
    """Blocks of a flat tensor whose elements are, in order, spans of (length, slot)."""
    block, longest = (_BLOCK_ON_CPU, _PIECE_ON_CPU) if device.type == "cpu" else (_BLOCK, _BLOCK)
    pieces: dict[int, list[tuple[int, int]]] = {}  # by the number of the block
    end = 0
    for length, slot in spans:
        stop = end + length
        while end < stop:
            size = min(stop - end, longest, block - end % block)
            pieces.setdefault(end // block, []).append((size, slot))
            end += size
    return [
        Block(number * block, [size for size, _ in own], torch.tensor([slot for _, slot in own], device=device))
        for number, own in pieces.items()
    ]


def whole(parameters: Sequence[torch.Tensor]) -> Layout:
    """Where every tensor is a parameter, and every rank has all of them."""
    blocks = {p: cut([(p.numel(), slot)], p.device) for slot, p in enumerate(parameters)}
    sizes = [*(p.numel() for p in parameters), 1]
    numel_S = torch.tensor(sizes, dtype=torch.float64, device=parameters[0].device)
    return Layout(blocks, numel_S, lambda sums: sums)


class Work(NamedTuple):
    """A block with its elements: views of the weights, the gradient and the moments, and what unbiases the moments."""

    block: Block
    w_B: torch.Tensor
    g_B: torch.Tensor
    m_B: torch.Tensor
    v_B: torch.Tensor
    unbias: tuple[torch.Tensor, torch.Tensor]


class Layerwise(torch.optim.Optimizer):
    """AdamW (Loshchilov and Hutter 2019) whose step is scaled for each parameter; state as that of torch's AdamW.

    `layout` is that of whole parameters; who divides them sets another one before the first step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.layout = whole([p for group in self.param_groups for p in group["params"]])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update. All ranks call it for the same groups in the same order."""
        for group in self.param_groups:
            works = [work for p in group["params"] if p.grad is not None for work in self._works(p, group["betas"])]
            if works:
                self._update(group, works)

    def _measured(self, group: dict[str, Any], work: Work) -> list[torch.Tensor]:
        """What a block adds to the norms that decide the scales; none where all scales are 1."""
        raise NotImplementedError

    def _scales(self, norms_S: list[torch.Tensor]) -> torch.Tensor:
        """The factor of the step (S), by the norms of what was measured."""
        raise NotImplementedError

    def _works(self, tensor: torch.Tensor, betas: tuple[float, float]) -> Iterator[Work]:
        state: dict[str, torch.Tensor] = self.state[tensor]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=tensor.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(tensor), torch.zeros_like(tensor)
        state["step"] += 1
        first, second = (1 - beta ** state["step"].double() for beta in betas)  # in fp32, 1 - 0.999 has four digits
        weights, gradient = tensor.detach().view(-1), tensor.grad.reshape(-1)  # type: ignore[union-attr]
        flat = (weights, gradient, state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1))
        for block in self.layout.blocks[tensor]:
            w_B, g_B, m_B, v_B = (value.narrow(0, block.start, sum(block.sizes)) for value in flat)
            yield Work(block, w_B, g_B, m_B, v_B, (first, second))

    def _update(self, group: dict[str, Any], works: list[Work]) -> None:
        sums: list[torch.Tensor] = []
        for work in works:
            _advance(work, group["betas"])
            measured = self._measured(group, work)
            sums = sums or [torch.zeros_like(self.layout.numel_S) for _ in measured]
            for row_S, values_B in zip(sums, measured, strict=True):
                norms_K = torch.stack(torch._foreach_norm(values_B.split(work.block.sizes)))
                row_S.index_add_(0, work.block.slots_K, norms_K.double().square())
        scales_S = None
        if sums:
            norms = self.layout.total(torch.stack(sums)).sqrt()
            scales_S = self._scales(list(norms)).float()
        for work in works:
            _apply(group, work, scales_S)


def _advance(work: Work, betas: tuple[float, float]) -> None:
    work.m_B.lerp_(work.g_B, 1 - betas[0])
    work.v_B.mul_(betas[1]).addcmul_(work.g_B, work.g_B, value=1 - betas[1])


def _direction(group: dict[str, Any], work: Work) -> torch.Tensor:
    """m / (sqrt(v) + eps) + decay w (B), both moments unbiased."""
    roots_B = (work.v_B / work.unbias[1]).sqrt_().add_(group["eps"])
    direction_B = torch.div(work.m_B, roots_B.mul_(work.unbias[0]), out=roots_B)
    return direction_B.add_(work.w_B, alpha=group["weight_decay"]) if group["weight_decay"] else direction_B


def _apply(group: dict[str, Any], work: Work, scales_S: torch.Tensor | None) -> None:
    direction_B, sizes = _direction(group, work), work.block.sizes
    if scales_S is None:
        work.w_B.add_(direction_B, alpha=-group["lr"])
        return
    scales_K = scales_S[work.block.slots_K].unbind()
    torch._foreach_addcmul_(work.w_B.split(sizes), direction_B.split(sizes), scales_K, value=-group["lr"])


class Lamb(Layerwise):
    """LAMB (You et al. 2020): a step has the norm of the weights it changes, times the learning rate.

    The trust ratio |w| / |direction| holds for what decays, and is 1 where one of the norms is 0. Biases and layer
    norms, which do not decay, take AdamW's step.
    """

    def _measured(self, group: dict[str, Any], work: Work) -> list[torch.Tensor]:
        return [work.w_B, _direction(group, work)] if group["weight_decay"] else []

    def _scales(self, norms_S: list[torch.Tensor]) -> torch.Tensor:
        weights_S, steps_S = norms_S
        return torch.where((weights_S > 0) & (steps_S > 0), weights_S / steps_S, torch.ones_like(steps_S))


class StableAdamW(Layerwise):
    """StableAdamW (Wortsman et al. 2023): a step is shorter where gradients outgrow their second moment.

    The learning rate of a parameter is divided by max(1, RMS), the root of the mean of g^2 / max(v, eps^2) over its
    elements, v being the unbiased second moment that has seen g.
    """

    def _measured(self, group: dict[str, Any], work: Work) -> list[torch.Tensor]:
        roots_B = (work.v_B / work.unbias[1]).sqrt_().clamp_min_(group["eps"])
        return [torch.div(work.g_B, roots_B, out=roots_B)]

    def _scales(self, norms_S: list[torch.Tensor]) -> torch.Tensor:
        [norms] = norms_S
        return 1 / (norms / self.layout.numel_S.sqrt()).clamp_min(1)
