"""`python -m train check`: every finding a line, from the ranks that come to the links between them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch

from train import distributed
from train.config import Config
from train.data.data_set import DataSet
from train.distributed import Ranks
from train.ds_config import load_ds_config
from train.errors import BertmaeError
from train.objectives import build_objective
from train.preflight.devices import check_devices
from train.preflight.equality import sameness
from train.preflight.findings import Finding, ok, on_every_rank, wrong
from train.preflight.folder import check_folder, room
from train.preflight.links import check_links
from train.preflight.shards import sample_shards
from train.probes.open import open_probes
from train.rank_discovery import discover
from train.start_times import age
from train.training_data import close_stores, local_folders_of_all, open_data_sets, token_shares
from train.vocabulary import load_vocabulary

_MINUTE = 57.0  # seconds since the start of the process within which a missing rank is named
_LEAST = 20.0  # seconds that the others have in any case: imports may take long
_PATIENCE = 45.0  # seconds for an answer of one that has come


def check(config: Config) -> Iterator[Finding]:
    """What `config` meets here, thing by thing: the same levels on every rank that can join the others.

    Rank 0 has the words of all; on the others only what rank 0 cannot know has any. Nothing is written but a file in
    the run folder that is gone at once.
    """
    speaks, launcher = os.environ.get("RANK", "0") == "0", discover(os.environ).launcher
    try:
        ranks = distributed.start(max(_LEAST, _MINUTE - age()), timedelta(seconds=_PATIENCE))
    except BertmaeError as error:
        yield wrong("" if error.everywhere and not speaks else f"ranks: {error}")
        return
    except RuntimeError as error:  # of NCCL or gloo
        yield wrong(
            f"ranks: all came, but they cannot connect to each other ({_first_line(error)}): open the ports between "
            "the hosts, or name the network in NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME"
        )
        return
    try:
        for finding in _check_all(config, ranks, launcher):
            yield finding if speaks else Finding(finding.level, "")
    except RuntimeError as error:
        words = f"one did not answer within {_PATIENCE:.0f} s, or ended ({_first_line(error)})"
        yield wrong(f"ranks: {words}: look for its own lines")


def _check_all(config: Config, ranks: Ranks, launcher: str) -> Iterator[Finding]:
    yield ok(_who_is_here(ranks, launcher))
    yield from check_devices(ranks)
    sets: list[DataSet] = []
    refused = on_every_rank(ranks, lambda: _open(config, ranks, sets))
    yield from refused
    yield from sameness(ranks, [] if refused else sets)
    try:
        if not refused:
            yield from on_every_rank(ranks, lambda: sample_shards(ranks, sets))
        yield from on_every_rank(ranks, lambda: [_ds_config(config, ranks)])
        if config.probes.are_there:
            yield from on_every_rank(ranks, lambda: [_probes(config, ranks)])
        yield from check_folder(Path(config.run.directory), ranks)
        if not refused:
            yield from on_every_rank(ranks, lambda: [_room(config, ranks, sets)])
    finally:
        close_stores(sets)
    yield from check_links(ranks)


def _who_is_here(ranks: Ranks, launcher: str) -> str:
    hosts = list(dict.fromkeys(ranks.hosts_R))
    count, where = ranks.world_size, ", ".join(hosts[:8]) + (" ..." if len(hosts) > 8 else "")
    backend = "NCCL" if ranks.device.type == "cuda" else "gloo"
    by = f", as {launcher} says" if launcher else ""
    return f"ranks: {count} on {len(hosts)} host{'s' * (len(hosts) > 1)} ({where}), {backend}{by}"


def _open(config: Config, ranks: Ranks, sets: list[DataSet]) -> list[Finding]:
    sets += open_data_sets(config, local_folders_of_all(config, ranks))
    return []


def _ds_config(config: Config, ranks: Ranks) -> Finding:
    ds_config = load_ds_config(config, ranks.world_size)
    from train.engine import refuse_ds_config  # takes seconds to import

    refuse_ds_config(ds_config)
    return ok(f"DeepSpeed: {config.engine.ds_config} loads")


def _probes(config: Config, ranks: Ranks) -> Finding:
    if ranks.rank:
        return ok("")  # rank 0 alone reads them
    return ok(f"probes: {', '.join(f'{probe.name} ({probe.words})' for probe in open_probes(config.probes))}")


def _room(config: Config, ranks: Ranks, sets: list[DataSet]) -> Finding:
    if ranks.rank:
        return ok("")  # rank 0 alone writes checkpoints
    vocabulary = load_vocabulary(*(data_set.manifest for data_set in sets), shares=token_shares(config))
    with torch.device("meta"):
        model = build_objective(config, vocabulary)
    return room(config, sum(parameter.numel() for parameter in model.parameters()))


def _first_line(error: RuntimeError) -> str:
    return str(error).strip().split("\n", 1)[0]
