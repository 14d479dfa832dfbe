"""Norms of the gradient of each part of the model, by what the optimizer is given: exact at every ZeRO stage.

Nothing is changed and nothing copied: in the steps that are asked for, gradients are read where the optimizer is about
to read them.

Legend: S slots of a layout, one for each parameter and a last one for padding; P parts; K pieces of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from train.layerwise import Layout

PARTS = ("embeddings", "encoder", "decoder", "heads")
_ENCODER, _EMBEDDINGS = "encoder.masked_lm.", ("embeddings.", "embed_tokens.")
_OWN_EMBEDDINGS = ("sentinels",)  # of an objective, beside those of its encoder


def part_of(name: str, base: str) -> str:
    """Where a person looks for a parameter of an objective; `base` is the encoder below its head in transformers.

    A tied embedding is one of the embeddings, what predicts from the encoder's states one of the heads.
    """
    if name.startswith("decoder."):
        return "decoder"
    own = name.removeprefix(f"{_ENCODER}{base}.")
    if name in _OWN_EMBEDDINGS or (own != name and own.startswith(_EMBEDDINGS)):
        return "embeddings"
    return "encoder" if own != name else "heads"


class GradientParts:
    """Adds up squares in the optimizer's steps while `wanted`."""

    def __init__(self, names: list[str], base: str, layout: Layout, optimizer: torch.optim.Optimizer) -> None:
        """`names` of the parameters are in the order of the layout's slots."""
        parts = [part_of(name, base) for name in names]
        self.wanted = False
        self.parts = tuple(part for part in PARTS if part in parts)
        numbers = [*(self.parts.index(part) for part in parts), len(self.parts)]  # the last: padding
        self._layout = layout
        self._part_S = torch.tensor(numbers, device=layout.numel_S.device)
        self._squares_S = torch.zeros_like(layout.numel_S)
        optimizer.register_step_pre_hook(self._add)

    def norms(self) -> torch.Tensor:
        """Norms [P], fp64, of what the optimizer was given since the last call. All ranks come here."""
        squares_P = self._squares_S.new_zeros(len(self.parts) + 1)
        squares_P.index_add_(0, self._part_S, self._layout.total(self._squares_S))
        self._squares_S.zero_()
        return squares_P[:-1].sqrt()

    @torch.no_grad()
    def _add(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before a step of the optimizer; ZeRO does one for each group of parameters, and calls it with these alone."""
        del args, kwargs
        if not self.wanted:
            return
        for group in optimizer.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._add_tensor(tensor)

    def _add_tensor(self, tensor: torch.Tensor) -> None:
        gradient = tensor.grad.reshape(-1)  # type: ignore[union-attr]
        for block in self._layout.blocks[tensor]:
            pieces = gradient.narrow(0, block.start, sum(block.sizes)).split(block.sizes)
            norms_K = torch.stack(torch._foreach_norm(pieces))
            self._squares_S.index_add_(0, block.slots_K, norms_K.double().square())


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that have slots, in their order."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
