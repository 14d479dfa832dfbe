"""What DeepSpeed really uses, against what it was given: its defaults have moved between versions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import torch

from train.ds_config import offloads

Pair = tuple[str, Any, Any]  # name of a setting, the value that was given, the value that is used


def group_settings(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rates, decay and the rest of each parameter group of an optimizer, without its parameters."""
    return [{key: value for key, value in group.items() if key != "params"} for group in groups]


def check_settings(
    engine: Any,
    ds_config: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    groups: list[dict[str, Any]],
    shares: Iterable[torch.Tensor],
) -> None:
    """Raise RuntimeError at the first setting of DeepSpeed's `engine` that is not as given.

    `optimizer` and its `groups`, as they were before DeepSpeed took them; `shares` are the tensors it updates.
    """
    # One after the other: what is compared later exists only where the earlier is as given.
    pairs = chain(
        _top_level(engine, ds_config),
        _zero(engine, ds_config["zero_optimization"]),
        _optimizer(engine, ds_config, optimizer),
        _groups(engine, groups),
        _shares(engine, ds_config, shares),
    )
    for key, given, used in pairs:
        if given != used:
            raise RuntimeError(f"DeepSpeed was given {key} = {given} and uses {used}")


def _top_level(engine: Any, ds_config: dict[str, Any]) -> Iterator[Pair]:
    for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping"):
        yield key, ds_config[key], getattr(engine, key)()
    bf16, autocast = ds_config["bf16"], ds_config["torch_autocast"]
    yield "bf16.enabled", bf16["enabled"], engine.bfloat16_enabled()
    checked = engine._config.bfloat16_config.check_grad_overflow
    yield "bf16.check_grad_overflow", bf16["check_grad_overflow"], checked
    yield "fp16.enabled", ds_config["fp16"]["enabled"], engine.fp16_enabled()
    yield "torch_autocast.enabled", autocast["enabled"], engine.torch_autocast_enabled()
    yield "torch_autocast.dtype", getattr(torch, autocast["dtype"]), engine.torch_autocast_dtype()


def _zero(engine: Any, zero: dict[str, Any]) -> Iterator[Pair]:
    """Every value of the file's section; DeepSpeed keeps some under another name than the file's."""
    used = engine._config.zero_config
    field_of = {info.alias or name: name for name, info in type(used).model_fields.items()}
    for key, given in zero.items():
        value = getattr(used, field_of[key])
        if isinstance(given, dict):
            for inner in given:
                yield f"zero_optimization.{key}.{inner}", given[inner], getattr(value, inner, None)
        else:
            yield f"zero_optimization.{key}", given, value


def _optimizer(engine: Any, ds_config: dict[str, Any], optimizer: torch.optim.Optimizer) -> Iterator[Pair]:
    """The wrapper that the stage has, around our own optimizer, and what it does with gradients."""
    stage, wrapper = int(ds_config["zero_optimization"]["stage"]), engine.optimizer
    yield "the optimizer", type(optimizer).__name__, type(engine.basic_optimizer).__name__
    if stage == 0:
        yield "the optimizer's wrapper", type(optimizer).__name__, type(wrapper).__name__
        return
    own = stage == 1 and ds_config["bf16"]["enabled"] and not offloads(ds_config)
    name = "DeepSpeedZeroOptimizer_Stage3" if stage == 3 else "BF16_Optimizer" if own else "DeepSpeedZeroOptimizer"
    yield "the optimizer's wrapper", name, type(wrapper).__name__
    yield "the optimizer's clipping", ds_config["gradient_clipping"], wrapper.clip_grad
    sums = wrapper.grad_acc_dtype if own else wrapper.gradient_accumulation_dtype
    yield "data_types.grad_accum_dtype", torch.float32, sums


def _groups(engine: Any, groups: list[dict[str, Any]]) -> Iterator[Pair]:
    used = group_settings(engine.optimizer.param_groups)
    yield "the number of parameter groups", len(groups), len(used)
    for number, (given, own) in enumerate(zip(groups, used, strict=True)):
        for key in given:
            yield f"{key} of parameter group {number}", given[key], own[key]


def _shares(engine: Any, ds_config: dict[str, Any], shares: Iterable[torch.Tensor]) -> Iterator[Pair]:
    device = "cpu" if offloads(ds_config) else engine.device.type
    for share in shares:
        yield "the optimizer's precision", torch.float32, share.dtype
        yield "the optimizer's device", device, share.device.type
