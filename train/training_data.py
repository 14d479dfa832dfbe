"""What a configuration reads: its data sets, the packing plans they need, and the walk through them step by step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_pipeline.manifest import Manifest, load_manifest
from train.config import Config
from train.data.epochs import EpochWalk
from train.data.mixture import MixtureWalk, Stage
from train.data.packing import PackingRules, RowPlan
from train.errors import UserError

SPLIT = "train"

PlanOf = Callable[[Manifest, PackingRules], RowPlan]


def open_manifests(config: Config) -> list[Manifest]:
    """The manifest of each data set. Raises UserError where their tokenizers differ, DataError for a damaged one."""
    paths = [config.data.path] if config.data.path else [source.path for source in config.data.sources]
    manifests = [load_manifest(Path(path)) for path in paths]
    for manifest in manifests[1:]:
        if manifest.tokenizer_checksum != manifests[0].tokenizer_checksum:
            raise UserError(
                f"data.sources: {manifest.directory} was built with another tokenizer than {manifests[0].directory}; "
                "build them with the same"
            )
    return manifests


def packing_rules(config: Config, length: int | None = None) -> PackingRules:
    """The rules for rows of `length` tokens, or of the configuration's own length."""
    data = config.data
    return PackingRules(length or data.sequence_length, data.piece_length, data.piece_overlap)


def needed_plans(config: Config, manifests: list[Manifest]) -> list[tuple[Manifest, PackingRules]]:
    """Every plan that the run will use: of each data set, for each sequence length."""
    return [(manifest, packing_rules(config, length)) for length in _lengths(config) for manifest in manifests]


def open_walk(config: Config, manifests: list[Manifest], plan_of: PlanOf) -> EpochWalk | MixtureWalk:
    """The walk through one data set, or through several, or through rows whose length changes."""
    repeat, seed = config.data.when_exhausted == "repeat", config.run.seed
    if config.data.path and not config.data.sequence_length_at:
        return EpochWalk(manifests[0], SPLIT, plan_of(manifests[0], packing_rules(config)), seed, repeat=repeat)
    names = [source.name for source in config.data.sources] or ["data"]

    def walks(length: int) -> tuple[EpochWalk, ...]:
        rules = packing_rules(config, length)
        return tuple(EpochWalk(manifest, SPLIT, plan_of(manifest, rules), seed) for manifest in manifests)

    by_length = {length: walks(length) for length in _lengths(config)}
    return MixtureWalk([_stage(config, step, by_length) for step in _steps(config)], names, seed, repeat=repeat)


def _lengths(config: Config) -> list[int]:
    """Every sequence length of the run, once."""
    return list(dict.fromkeys([config.data.sequence_length, *(at.length for at in config.data.sequence_length_at)]))


def _steps(config: Config) -> list[int]:
    """The optimizer steps at which a stage begins."""
    data = config.data
    return sorted({0, *(at.step for at in data.weights_at), *(at.step for at in data.sequence_length_at)})


def _stage(config: Config, step: int, by_length: dict[int, tuple[EpochWalk, ...]]) -> Stage:
    data = config.data
    length, weights = data.sequence_length, tuple(source.weight for source in data.sources) or (1.0,)
    for longer in data.sequence_length_at:
        length = longer.length if longer.step <= step else length
    for change in data.weights_at:
        weights = change.weights if change.step <= step else weights
    shrink = length // data.sequence_length if config.batch.same_tokens_per_step else 1
    return Stage(step, by_length[length], weights, shrink)
