"""AdamW's parameter groups and arithmetic."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from train.objectives import build_objective
from train.optimizer import build_optimizer
from train.vocabulary import Vocabulary

DECAY = 0.125


@pytest.fixture(params=["mlm", "mae", "joint"])
def objective(request, configure):
    """A small model of each objective, with the configuration it was built from."""
    config = configure(f"objective.name={request.param}", f"optimizer.weight_decay={DECAY}")
    special = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    vocabulary = Vocabulary(20, special, np.arange(5, 20), most_frequent_id=7, unigram_entropy=2.5)
    return build_objective(config, vocabulary), config


def decay_by_kind_of_module(model):
    """The slow reference: what a parameter is follows from the module that owns it."""
    decay = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            is_matrix = isinstance(module, nn.Linear | nn.Embedding) and name == "weight"
            decay[id(parameter)] = max(decay.get(id(parameter), 0.0), DECAY if is_matrix else 0.0)
    return decay


def test_every_parameter_is_in_one_group_and_only_matrices_decay(objective):
    """Reference: the kind of the module that owns a parameter (weights of Linear and Embedding decay, no others)."""
    model, config = objective
    groups = build_optimizer(model, config).param_groups
    grouped = [(id(p), group["weight_decay"]) for group in groups for p in group["params"]]
    assert len({key for key, _ in grouped}) == len(grouped) == len(list(model.parameters()))
    expected = decay_by_kind_of_module(model)
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    wrong = [named[key] for key, decay in grouped if decay != expected[key]]
    assert wrong == []
    assert {decay for _, decay in grouped} == {0.0, DECAY}


def test_a_frozen_parameter_is_left_out(objective):
    """Reference: the parameters that ask for a gradient."""
    model, config = objective
    frozen = next(model.parameters()).requires_grad_(False)
    assert all(p is not frozen for group in build_optimizer(model, config).param_groups for p in group["params"])


def test_an_update_is_adamw_with_decoupled_decay(configure):
    """Reference: Loshchilov and Hutter 2019, algorithm 2, in Python floats, three updates of a matrix and its bias."""
    rate, (b1, b2), eps = 0.01, (0.5, 0.75), 0.125
    config = configure(
        f"optimizer.learning_rate={rate}",
        f"optimizer.betas=[{b1}, {b2}]",
        f"optimizer.eps={eps}",
        f"optimizer.weight_decay={DECAY}",
    )
    model = nn.Linear(1, 1).double()
    values = {name: p.item() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, config)
    moments = dict.fromkeys(values, (0.0, 0.0))
    for step, gradients in enumerate([(0.5, -2.0), (-1.0, 0.25), (3.0, 0.0)], 1):
        for (name, parameter), gradient in zip(model.named_parameters(), gradients, strict=True):
            parameter.grad = torch.full_like(parameter, gradient)
            m, v = moments[name]
            m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
            moments[name] = m, v
            direction = (m / (1 - b1**step)) / (math.sqrt(v / (1 - b2**step)) + eps)
            values[name] -= rate * (direction + (DECAY * values[name] if name == "weight" else 0.0))
        optimizer.step()
    assert {name: p.item() for name, p in model.named_parameters()} == pytest.approx(values, rel=1e-12)
