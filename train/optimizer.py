"""The optimizer with its parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import difflib
import math
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from train.config import Config, Optimizer, ParameterGroup, decay_steps
from train.errors import UserError
from train.layerwise import Lamb, StableAdamW


def build_optimizer(module: nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer of the run over the parameters that ask for a gradient.

    Raises UserError for a pattern of optimizer.groups that decides nothing.
    """
    settings = config.optimizer
    groups = parameter_groups(module, settings)
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)
    layerwise = {"lamb": Lamb, "stable-adamw": StableAdamW}[settings.name]
    return layerwise(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)


def parameter_groups(module: nn.Module, settings: Optimizer) -> list[dict[str, Any]]:
    """Parameters of equal learning rate and decay: "params", "lr", "learning_rate_ratio", "weight_decay".

    Without optimizer.groups, matrices decay, and biases, norms and other vectors do not.
    """
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    chosen = _choices(list(named), settings)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        own = chosen.get(name, ParameterGroup(parameters=name))
        usual = settings.weight_decay if parameter.ndim > 1 else 0.0
        ratio, decay = own.learning_rate_ratio, usual if own.weight_decay is None else own.weight_decay
        rates = {"lr": settings.learning_rate * ratio, "learning_rate_ratio": ratio, "weight_decay": decay}
        groups.setdefault((ratio, decay), {"params": [], **rates})["params"].append(parameter)
    return list(groups.values())


def _choices(names: list[str], settings: Optimizer) -> dict[str, ParameterGroup]:
    """The first of optimizer.groups that matches, by parameter name."""
    chosen: dict[str, ParameterGroup] = {}
    for number, group in enumerate(settings.groups):
        key = f"optimizer.groups[{number}].parameters: {group.parameters!r}"
        matches = [name for name in names if fnmatchcase(name, group.parameters)]
        new = [name for name in matches if name not in chosen]
        if not matches:
            nearest = ", ".join(difflib.get_close_matches(group.parameters, names, n=3, cutoff=0.0))
            raise UserError.agreed(f"{key} matches no parameter (the nearest are {nearest})")
        if not new:
            raise UserError.agreed(f"{key} matches only what earlier groups have: put it before them or leave it out")
        chosen |= dict.fromkeys(new, group)
    return chosen


def learning_rate(step: int, config: Config) -> float:
    """The rate of the update that follows `step` completed ones; the first one is above 0, the peak ends the warmup."""
    return config.optimizer.learning_rate * _shape(step, config)


def _shape(step: int, config: Config) -> float:
    """Share of the peak rate."""
    schedule, steps = config.schedule, config.run.steps
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    if schedule.name == "constant":
        return 1.0
    start = steps - decay_steps(config) if schedule.name == "warmup_stable_decay" else schedule.warmup_steps
    if step < start:
        return 1.0
    done = min(1.0, (step + 1 - start) / max(1, steps - start))
    left = (1 + math.cos(math.pi * done)) / 2 if schedule.name == "cosine" else 1 - done
    return schedule.final_learning_rate_ratio + (1 - schedule.final_learning_rate_ratio) * left
