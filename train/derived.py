"""The numbers that follow from a configuration and a data set, as sentences that say what will happen."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from train.config import Config, gradient_accumulation_steps
from train.data.packing import RowPlan
from train.ds_config import load_ds_config, zero_stage
from train.model.pretrained import left_out
from train.objectives import build_objective
from train.vocabulary import Vocabulary


def describe(
    config: Config, world_size: int, plans: Sequence[tuple[str, float, RowPlan]], vocabulary: Vocabulary
) -> list[str]:
    """One sentence for each thing a person should know before the run costs anything.

    `plans` are (name, share of all rows read, plan) of each data set.
    """
    return [
        _batch(config, world_size),
        *(_data(config, *plan) for plan in plans),
        _model(config, vocabulary),
        *left_out(config.model),
        _arithmetic(config, world_size),
        f"A model that knows only how often each token occurs has a loss of {vocabulary.unigram_entropy:.3f} nats.",
    ]


def _batch(config: Config, world_size: int) -> str:
    rows, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    accumulation = gradient_accumulation_steps(config, world_size)
    tokens = rows * config.data.sequence_length
    return (
        f"Global batch {rows:,} rows = {micro} per device x {world_size} {_plural(world_size, 'device')} x "
        f"{accumulation} accumulation {_plural(accumulation, 'step')}: at most {tokens:,} tokens per optimizer step."
    )


def _data(config: Config, name: str, share: float, plan: RowPlan) -> str:
    steps = -(-plan.rows // (config.batch.global_batch_size * share))
    return (
        f"{name} packs into {plan.rows:,} rows of at most {plan.rules.sequence_length} tokens "
        f"({plan.padding_share:.2%} unused): {steps:,.0f} {_plural(steps, 'step')} per epoch, "
        f"{config.run.steps / steps:.2f} epochs in {config.run.steps:,} steps."
    )


def _model(config: Config, vocabulary: Vocabulary) -> str:
    with torch.device("meta"):
        objective = build_objective(config, vocabulary)
    total = sum(p.numel() for p in objective.parameters())
    encoder = sum(p.numel() for p in objective.encoder.parameters())
    decoder = f", decoder {_millions(total - encoder)}" if total > encoder else ""
    return (
        f"The model has {_millions(total)} parameters (encoder {_millions(encoder)}{decoder}) over a vocabulary of "
        f"{vocabulary.size:,}; objective {config.objective.name}."
    )


def _arithmetic(config: Config, world_size: int) -> str:
    stage = zero_stage(load_ds_config(config, world_size))
    checkpointing = "with" if config.model.gradient_checkpointing else "without"
    return f"DeepSpeed ZeRO stage {stage} in {config.engine.precision}, {checkpointing} gradient checkpointing."


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M" if count < 10_000_000 else f"{count / 1e6:.1f} M"


def _plural(count: float, word: str) -> str:
    return word if count == 1 else f"{word}s"
