"""The record that a task hands to training.py, and where each task's code is found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from train.finetune.settings import TASKS

Feature = dict[str, Any]  # one row as the collator takes it: token ids as lists, `labels`
Scored = tuple[dict[str, float], list[dict[str, Any]]]  # (metrics, one JSON object for each row of the file)
# (model output, labels, number of labelled items in the global batch or None) -> loss
Loss = Callable[..., torch.Tensor]


def _unchanged(model: Any) -> Any:
    return model


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Data, model and metrics of one fine-tuning, made from files that were read and checked to their ends."""

    train: Sequence[Feature]
    validation: Sequence[Feature]
    test: Sequence[Feature] | None
    tokenizer: Any
    build_model: Callable[[], nn.Module]  # called once the seed is set: new heads are random
    collator: Callable[[list[Feature]], Mapping[str, torch.Tensor]]
    # score(split, predictions): split is "validation" or "test"; predictions are what the Trainer gathers, in the order
    # of that split's features: logits (numpy), a tuple of them, or generated ids.
    score: Callable[[str, Any], Scored]
    decisive: str  # the metric of the validation set by which the best checkpoint is chosen; higher is better
    found: Sequence[str] = ()  # sentences for the user: labels, what was cut, repaired, left out
    facts: Mapping[str, Any] = field(default_factory=dict)  # the same as numbers, for results.json
    rows: Mapping[str, int] = field(default_factory=dict)  # rows of each split's file
    loss: Loss | None = None  # None: the loss that the model returns
    generation: Mapping[str, Any] | None = None  # for encoder-decoders: settings of generate() in validation
    saved: Mapping[str, Any] = field(default_factory=dict)  # what `predict` must know, kept in task.json
    to_save: Callable[[Any], Any] = _unchanged  # the part of the trained model that is saved (a PreTrainedModel)


def module(task: str) -> ModuleType:
    """The module of a task of `settings.TASKS`. It has two functions:

    prepare(settings: Settings) -> Task
    predict(folder: Path, rows: Sequence[Row], saved: Mapping, batch_size: int) -> Iterator[dict]
    """
    if task not in TASKS:
        raise KeyError(task)
    return importlib.import_module(f"train.finetune.{task}")


Predict = Callable[[Path, Sequence[Any], Mapping[str, Any], int], Iterator[dict[str, Any]]]
