"""Training an objective by a plain loop: batches, masks and update as the engine has them, without DeepSpeed.

A step draws the masks of the next one before its own work is queued, as the training loop does, so that a GPU never
waits for the host.

Legend: T tokens, D documents, H heads of the objective.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipeline.manifest import Manifest
from train.config import Config
from train.data.batch import Batch
from train.data.epochs import EpochWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, plan_rows
from train.data.stream import TrainStream
from train.model.documents import upload
from train.objectives.objective import Objective
from train.optimizer import build_optimizer

Update = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step was."""

    tokens: int  # real ones: no padding, no fillers
    lengths_D: np.ndarray
    waited: float  # seconds for its batch


@dataclass(frozen=True, slots=True)
class _Prepared:
    batch: Batch
    selection: Any
    waited: float


def open_stream(manifest: Manifest, config: Config) -> TrainStream:
    """Micro-batches of one device, one a step, from the beginning."""
    plan = plan_rows(manifest, "train", PackingRules(config.data.sequence_length))
    seed, rows = config.run.seed, config.batch.micro_batch_size
    walk = EpochWalk(manifest, "train", plan, seed, word_starts=config.objective.needs_word_starts)
    return TrainStream(walk, Share(0, 1, rows, rows), Cursor(0, 0))


def steps(objective: Objective[Any], stream: TrainStream, update: Update, device: torch.device) -> Iterator[Step]:
    """Train for ever; each step has been queued on the device when it is given."""
    ahead, number = _prepare(objective, stream, device, 0), 0
    while True:
        now, number = ahead, number + 1
        ahead = _prepare(objective, stream, device, number)
        counts_H = np.maximum(1, objective.target_counts(now.selection))
        scale_H = upload((np.array(objective.weights()) / counts_H).astype(np.float32), device)
        losses_H, _ = objective(now.batch, now.selection)
        (losses_H * scale_H).sum().backward()
        update()
        yield Step(now.batch.tokens, now.batch.lengths_D, now.waited)


def _prepare(objective: Objective[Any], stream: TrainStream, device: torch.device, number: int) -> _Prepared:
    began = time.perf_counter()
    [batch], _ = next(stream)
    waited = time.perf_counter() - began
    moved = batch.to(device)
    return _Prepared(moved, objective.select(moved, number), waited)


def fp32_update(objective: Objective[Any], config: Config) -> Update:
    """Clip and apply the gradients of fp32 weights; then they are gone."""
    optimizer = build_optimizer(objective, config)

    def update() -> None:
        _clip(list(objective.parameters()), config)
        optimizer.step()
        optimizer.zero_grad()

    return update


def bf16_update(objective: Objective[Any], config: Config) -> Update:
    """The same with fp32 masters, moments and gradients beside weights of bf16, as DeepSpeed keeps them.

    Buffers stay as they are: the frequencies of rotary positions must not be rounded.
    """
    parameters = list(objective.parameters())
    masters = nn.ParameterList(parameter.detach().float() for parameter in parameters)
    for parameter in parameters:
        parameter.data = parameter.data.bfloat16()
    optimizer = build_optimizer(masters, config)
    for master in masters:
        master.grad = torch.zeros_like(master)

    @torch.no_grad()
    def update() -> None:
        pairs = [(m.grad, p.grad) for m, p in zip(masters, parameters, strict=True) if p.grad is not None]
        wide, narrow = zip(*pairs, strict=True)
        torch._foreach_copy_(wide, narrow)
        objective.zero_grad()
        _clip(list(masters), config)
        optimizer.step()
        torch._foreach_copy_(parameters, list(masters))

    return update


def _clip(parameters: list[nn.Parameter], config: Config) -> None:
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    nn.utils.clip_grads_with_norm_(parameters, config.optimizer.gradient_clipping, norm)
