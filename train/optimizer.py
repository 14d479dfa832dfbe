"""The optimizer's parameter groups and the learning rate as a pure function of the step."""

from __future__ import annotations

import math

import torch
from torch import nn

from train.config import Config, decay_steps


def build_optimizer(module: nn.Module, config: Config) -> torch.optim.AdamW:
    """AdamW with decoupled decay (Loshchilov and Hutter 2019) on matrices; biases, norms and vectors have none."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    settings = config.optimizer
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps, fused=True)


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
