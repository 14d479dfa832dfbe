"""The numbers that follow from a configuration and a data set, as sentences that say what will happen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from train.config import Config, global_batch_size, gradient_accumulation_steps
from train.data.packing import RowPlan
from train.ds_config import load_ds_config, offloads, zero_stage
from train.model.pretrained import left_out
from train.objectives import build_objective
from train.optimizer import parameter_groups
from train.training_data import length_at, shrink_at, stretches
from train.vocabulary import Vocabulary


def describe(
    config: Config, world_size: int, plans: Sequence[tuple[str, float, RowPlan]], vocabulary: Vocabulary
) -> list[str]:
    """One sentence for each thing a person should know before the run costs anything.

    `plans` are (name, share of all rows read, plan) of each data set.
    """
    return [
        _batch(config, world_size, 0),
        *(_batch(config, world_size, step) for step in _changes(config)),
        *(_data(config, *plan) for plan in plans),
        _model(config, vocabulary),
        *left_out(config.model),
        _arithmetic(config, world_size),
        f"A model that knows only how often each token occurs has a loss of {vocabulary.unigram_entropy:.3f} nats.",
    ]


def _batch(config: Config, world_size: int, step: int) -> str:
    shrink, accumulation = shrink_at(config, step), gradient_accumulation_steps(config, world_size, step)
    rows, micro = global_batch_size(config.batch, step) // shrink, config.batch.micro_batch_size // shrink
    tokens, begin = rows * length_at(config, step), f"From step {step:,} on: global" if step else "Global"
    return (
        f"{begin} batch {rows:,} rows = {micro} per device x {world_size} {_plural(world_size, 'device')} x "
        f"{accumulation} accumulation {_plural(accumulation, 'step')}: at most {tokens:,} tokens per optimizer step."
    )


def _changes(config: Config) -> list[int]:
    return [change.step for change in config.batch.global_batch_size_at if change.step < config.run.steps]


def _data(config: Config, name: str, share: float, plan: RowPlan) -> str:
    packed = (
        f"{name} packs into {plan.rows:,} rows of at most {plan.rules.sequence_length} tokens "
        f"({plan.padding_share:.2%} unused)"
    )
    if config.batch.global_batch_size_at:
        rows = sum((end - start) * global_batch_size(config.batch, start) for start, end in stretches(config))
        return f"{packed}: about {rows * share / plan.rows:.2f} epochs in {config.run.steps:,} steps of these sizes."
    steps = -(-plan.rows // (config.batch.global_batch_size * share))
    return (
        f"{packed}: {steps:,.0f} {_plural(steps, 'step')} per epoch, "
        f"{config.run.steps / steps:.2f} epochs in {config.run.steps:,} steps."
    )


def _model(config: Config, vocabulary: Vocabulary) -> str:
    with torch.device("meta"):
        objective = build_objective(config, vocabulary)
    parameter_groups(objective, config.optimizer)  # raises for a pattern that decides nothing
    total = sum(p.numel() for p in objective.parameters())
    encoder = sum(p.numel() for p in objective.encoder.parameters())
    decoder = f", decoder {_millions(total - encoder)}" if total > encoder else ""
    return (
        f"The model has {_millions(total)} parameters (encoder {_millions(encoder)}{decoder}) over a vocabulary of "
        f"{vocabulary.size:,}; objective {config.objective.name}."
    )


def _arithmetic(config: Config, world_size: int) -> str:
    ds_config = load_ds_config(config, world_size)
    precision = config.engine.precision + (" by autocast" if config.engine.autocast else "")
    checkpointing = "with" if config.model.gradient_checkpointing else "without"
    place = ", the optimizer on the CPU" if offloads(ds_config) else ""
    return (
        f"DeepSpeed ZeRO stage {zero_stage(ds_config)} in {precision}, {checkpointing} gradient checkpointing, "
        f"{config.optimizer.name}{place}."
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 10_000_000 else f"{count / 1e6:.1f} M"


def _plural(count: float, word: str) -> str:
    return word if count == 1 else f"{word}s"
