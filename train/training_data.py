"""What a configuration reads: its data sets, the packing plans they need, and the walk through them step by step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from train.config import Config, global_batch_size
from train.data.data_set import GIGABYTE, DataSet, open_data_set
from train.data.epochs import ONLY_SOURCE, EpochWalk
from train.data.mixture import MixtureWalk, Stage
from train.data.packing import PackingRules, RowPlan
from train.data.remote import is_remote, localize
from train.distributed import Ranks, on_first_rank, together
from train.errors import DataError, UserError

SPLIT = "train"
_PATIENCE_AT_START = 60.0  # seconds: a mistyped address should not be waited for
_OPEN_BLOCKS = 256  # of all stores of a process; each holds a file descriptor, of which there are often 1,024

PlanOf = Callable[[DataSet, PackingRules], RowPlan]


def local_folders(config: Config) -> list[str]:
    """The folder of each data set; of a remote one, its small files are brought to data.cache first.

    Raises what `localize` raises.
    """
    cache, patience = _cache(config), min(_PATIENCE_AT_START, config.data.store_patience_seconds)
    return [str(localize(path, cache, patience=patience)) if is_remote(path) else path for path in _paths(config)]


def local_folders_of_all(config: Config, ranks: Ranks) -> list[str]:
    """`local_folders` on one rank of each node, while the others wait. Raises the same on every rank."""
    names = on_first_rank(ranks, lambda: _folder_names(local_folders(config)))

    def fetch_for_node() -> None:
        if ranks.local_rank == 0 and ranks.rank and _folder_names(local_folders(config)) != names:
            raise DataError(f"{', '.join(_paths(config))}: changed while the run began; give the same command again")

    together(ranks, fetch_for_node)
    cache = _cache(config)  # "~" may be another folder on each node
    return [str(cache / name) if is_remote(path) else path for path, name in zip(_paths(config), names, strict=True)]


def _folder_names(folders: Sequence[str]) -> list[str]:
    return [Path(folder).name for folder in folders]


def open_data_sets(config: Config, folders: Sequence[str]) -> list[DataSet]:
    """Each data set, from its folder. Raises UserError where their tokenizers differ, DataError for a damaged one."""
    data, paths = config.data, _paths(config)
    cache_bytes, keep = int(data.cache_gigabytes * GIGABYTE), _OPEN_BLOCKS // len(paths)
    sets = [
        open_data_set(path, Path(folder), _cache(config), cache_bytes, data.store_patience_seconds, keep)
        for path, folder in zip(paths, folders, strict=True)
    ]
    for other in sets[1:]:
        if other.manifest.tokenizer_checksum != sets[0].manifest.tokenizer_checksum:
            raise UserError(
                f"data.sources: {other.path} was built with another tokenizer than {sets[0].path}; "
                "build them with the same"
            )
    return sets


def close_stores(sets: Sequence[DataSet]) -> None:
    """Cut off what is being fetched; who waits for a store that is away waits no longer."""
    for data_set in sets:
        if data_set.store is not None:
            data_set.store.close()


def describe_cache(config: Config, sets: Sequence[DataSet]) -> tuple[list[str], list[str]]:
    """Sentences and warnings on the cache of remote blocks; none where every data set is local."""
    windows = [data_set.window_bytes(SPLIT) for data_set in sets if data_set.store is not None]
    if not windows:
        return [], []
    blocks, size = sum(blocks for blocks, _ in windows), sum(size for _, size in windows) / GIGABYTE
    cache = config.data.cache_gigabytes
    sentence = (
        f"Remote blocks are kept in {config.data.cache}, at most {cache:,g} GB a node; a window of all lanes has "
        f"{blocks:,} blocks, {size:,.2f} GB."
    )
    warning = (
        f"The cache, {cache:,g} GB, is smaller than a window, {size:,.2f} GB: on few nodes blocks are fetched several "
        "times; raise data.cache_gigabytes."
    )
    return [sentence], [warning] if cache < size else []


def packing_rules(config: Config, length: int | None = None) -> PackingRules:
    """The rules for rows of `length` tokens, or of the configuration's own length."""
    data = config.data
    return PackingRules(length or data.sequence_length, data.piece_length, data.piece_overlap)


def needed_plans(config: Config, sets: Sequence[DataSet]) -> list[tuple[DataSet, PackingRules]]:
    """Every plan that the run will use: of each data set, for each sequence length."""
    return [(data_set, packing_rules(config, length)) for length in _lengths(config) for data_set in sets]


def open_walk(
    config: Config, sets: Sequence[DataSet], plan_of: PlanOf, *, word_starts: bool | None = None
) -> EpochWalk | MixtureWalk:
    """The walk through one data set, or through several, or through rows whose length changes.

    Its batches have word starts where the objective needs them, or as `word_starts` says.
    """
    repeat, seed = config.data.when_exhausted == "repeat", config.run.seed
    words = config.objective.needs_word_starts if word_starts is None else word_starts

    def walk(data_set: DataSet, length: int, *, repeat: bool = True) -> EpochWalk:
        plan = plan_of(data_set, packing_rules(config, length))
        manifest, store = data_set.manifest, data_set.store
        return EpochWalk(manifest, SPLIT, plan, seed, repeat=repeat, store=store, word_starts=words)

    if config.data.path and not config.data.sequence_length_at:
        return walk(sets[0], config.data.sequence_length, repeat=repeat)
    names = [source.name for source in config.data.sources] or [ONLY_SOURCE]
    by_length = {length: tuple(walk(data_set, length) for data_set in sets) for length in _lengths(config)}
    return MixtureWalk([_stage(config, step, by_length) for step in stage_steps(config)], names, seed, repeat=repeat)


def stage_steps(config: Config) -> list[int]:
    """The optimizer steps at which the weights or the sequence length change; the first is 0."""
    data = config.data
    return sorted({0, *(at.step for at in data.weights_at), *(at.step for at in data.sequence_length_at)})


def stretches(config: Config) -> list[tuple[int, int]]:
    """The stretches [step, end) of the run in which weights, sequence length and batch size stay the same."""
    changes = {*stage_steps(config), *(at.step for at in config.batch.global_batch_size_at)}
    return list(pairwise([*sorted(step for step in changes if step < config.run.steps), config.run.steps]))


def length_at(config: Config, step: int) -> int:
    """The sequence length of the rows read at `step`."""
    lengths = [at.length for at in config.data.sequence_length_at if at.step <= step]
    return lengths[-1] if lengths else config.data.sequence_length


def weights_at(config: Config, step: int) -> tuple[float, ...]:
    """The weight of each source at `step`."""
    weights_K = tuple(source.weight for source in config.data.sources) or (1.0,)
    for change in config.data.weights_at:
        weights_K = change.weights if change.step <= step else weights_K
    return weights_K


def shrink_at(config: Config, step: int) -> int:
    """How many times fewer rows than configured a global batch and a micro-batch have at `step`."""
    return length_at(config, step) // config.data.sequence_length if config.batch.same_tokens_per_step else 1


def token_shares(config: Config) -> tuple[float, ...]:
    """The share of each source in the tokens of the whole run, all rows taken as full; they add up to 1."""
    shares_K = np.zeros(len(config.data.sources) or 1)
    for start, end in stretches(config):
        weights_K = np.array(weights_at(config, start))
        shares_K += (end - start) * most_tokens_at(config, start) * weights_K / weights_K.sum()
    return tuple((shares_K / shares_K.sum()).tolist())


def most_tokens_at(config: Config, step: int) -> float:
    """Tokens of a global batch at `step` whose rows are all full."""
    return global_batch_size(config.batch, step) * length_at(config, step) / shrink_at(config, step)


def _paths(config: Config) -> list[str]:
    return [config.data.path] if config.data.path else [source.path for source in config.data.sources]


def _cache(config: Config) -> Path:
    return Path(config.data.cache).expanduser()


def _lengths(config: Config) -> list[int]:
    """Every sequence length of the run, once."""
    return list(dict.fromkeys([config.data.sequence_length, *(at.length for at in config.data.sequence_length_at)]))


def _stage(config: Config, step: int, by_length: dict[int, tuple[EpochWalk, ...]]) -> Stage:
    return Stage(step, by_length[length_at(config, step)], weights_at(config, step), shrink_at(config, step))
