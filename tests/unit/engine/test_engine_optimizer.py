"""The parameter groups and the arithmetic of the optimizers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from train.errors import UserError
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


@pytest.mark.parametrize("name", ["lamb", "stable-adamw"])
def test_the_moments_are_those_of_adamw(configure, name):
    """Reference: torch's AdamW after five updates with the same gradients: the same three entries of state."""
    torch.manual_seed(0)
    states = []
    for chosen in (name, "adamw"):
        model = nn.Linear(5, 3)
        optimizer = build_optimizer(model, configure(f"optimizer.name={chosen}"))
        for step in range(5):
            for parameter in model.parameters():
                generator = torch.Generator().manual_seed(step)
                parameter.grad = torch.randn(parameter.shape, generator=generator)
            optimizer.step()
        states.append([optimizer.state[parameter] for parameter in model.parameters()])
    for own, adamw in zip(*states, strict=True):
        assert own.keys() == adamw.keys()
        for key, value in adamw.items():
            torch.testing.assert_close(own[key], value)


def test_the_trust_ratio_of_a_large_matrix_is_exact(configure):
    """Reference: the norms in float64, of 4 million elements: added up in one float after the other, they would be
    off by 1e-4."""
    model = nn.Linear(2048, 2048, bias=False)
    config = configure("optimizer.name=lamb", "optimizer.weight_decay=0.5", "optimizer.learning_rate=0.125")
    before = model.weight.detach().clone()
    model.weight.grad = torch.ones_like(before)  # so that m / (sqrt(v) + eps) is 1 / (1 + eps)
    build_optimizer(model, config).step()
    direction = 1 / (1 + config.optimizer.eps) + 0.5 * before.double()
    step = (before.double() - model.weight.detach().double()).norm().item()
    assert step == pytest.approx(0.125 * before.double().norm().item(), rel=1e-6)
    wanted = before.double() - 0.125 * before.double().norm() / direction.norm() * direction
    torch.testing.assert_close(model.weight.detach().double(), wanted, rtol=1e-5, atol=1e-8)


def grouped(configure, *groups):
    """{name: (learning_rate_ratio, decay)} of a small model with these optimizer.groups."""
    model = nn.ModuleDict({"first": nn.Linear(3, 2), "second": nn.Linear(2, 2)})
    config = configure(f"optimizer.groups=[{', '.join(groups)}]", "optimizer.weight_decay=0.125")
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in build_optimizer(model, config).param_groups:
        assert group["lr"] == config.optimizer.learning_rate * group["learning_rate_ratio"]
        found |= {named[id(p)]: (group["learning_rate_ratio"], group["weight_decay"]) for p in group["params"]}
    return found


def test_the_first_pattern_that_matches_decides_and_a_written_decay_holds_for_vectors_too(configure):
    """Reference: a table written by hand."""
    found = grouped(
        configure,
        "{parameters: '*.bias', learning_rate_ratio: 2}",
        "{parameters: 'first.*', weight_decay: 0.5}",
        "{parameters: '*', weight_decay: 0.25, learning_rate_ratio: 0.5}",
    )
    assert found == {
        "first.weight": (1.0, 0.5),
        "first.bias": (2.0, 0.0),
        "second.weight": (0.5, 0.25),
        "second.bias": (2.0, 0.0),
    }
    assert grouped(configure, "{parameters: first.*, weight_decay: 0.5}")["first.bias"] == (1.0, 0.5)


MISTAKES = {
    ("{parameters: 'frist.*'}",): "optimizer.groups[0].parameters: 'frist.*' matches no parameter (the nearest are "
    "first.bias, first.weight, second.bias)",
    ("{parameters: '*'}", "{parameters: first.bias}"): "optimizer.groups[1].parameters: 'first.bias' matches only what "
    "earlier groups have: put it before them or leave it out",
}


@pytest.mark.parametrize("groups", MISTAKES)
def test_a_pattern_that_decides_nothing_is_one_line(configure, groups):
    """Reference: the sentences a user should read."""
    with pytest.raises(UserError) as caught:
        grouped(configure, *groups)
    assert str(caught.value) == MISTAKES[groups]


def test_lamb_without_any_decay_is_refused_and_with_the_decay_of_a_group_it_is_not(configure):
    """Reference: the sentence a user should read."""
    settings = ("optimizer.name=lamb", "optimizer.weight_decay=0")
    with pytest.raises(
        UserError, match=r"with optimizer\.weight_decay 0 nothing does: raise it or use optimizer\.name"
    ):
        configure(*settings)
    assert configure(*settings, "optimizer.groups=[{parameters: '*', weight_decay: 0.1}]").optimizer.name == "lamb"
