"""How the layers of a stack are run: compiled or not, and which of them are computed again in the backward pass."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from train.config import Model as ModelConfig
from train.errors import UserError

Forward = Callable[..., Any]


def prepare_layers(layers: Iterable[nn.Module], model: ModelConfig) -> None:
    """Replace each layer's `forward` as the configuration says. Parameters keep their names.

    Recomputation stands around the compiled code, and the hooks of a layer (ZeRO-3 fetches weights in them) around
    both. Raises UserError where there is nothing to compile with.
    """
    if model.compile:
        _check_compiler()
    for number, layer in enumerate(layers):
        forward: Forward = layer.forward
        if model.compile:
            forward = _compiled(layer)
        if model.gradient_checkpointing and number % model.gradient_checkpointing_every == 0:
            forward = _recomputed(layer, forward)
        layer.forward = forward


def _check_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")  # as torch.compile looks for it
    if not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(f"model.compile: no C++ compiler {compiler} on this machine: install one or set it to false")


def _compiled(layer: nn.Module) -> Forward:
    # The function of the class, not the bound method: layers of one kind then share what was compiled.
    forward = torch.compile(type(layer).forward, dynamic=True)
    return lambda *args, **kwargs: forward(layer, *args, **kwargs)


def _recomputed(layer: nn.Module, forward: Forward) -> Forward:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return forward(*args, **kwargs)
        # The reentrant kind fails under ZeRO where one embedding serves two losses.
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run
