"""The numbers of an estimate: what a run is, what it needs, how long it takes.

Legend: D documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_pipeline.manifest import load_manifest
from train.config import Config, global_batch_size, gradient_accumulation_steps
from train.data.packing import SPECIALS_PER_PIECE, PackingRules, plan_rows
from train.data.remote import is_remote
from train.devices import DEVICES, Device, find_device
from train.ds_config import load_ds_config
from train.errors import BertmaeError, UserError
from train.estimate.activations import measure_activations
from train.estimate.communication import Links, Traffic, seconds, traffic
from train.estimate.memory import Memory, Model, memory, usable
from train.flops import training_flops
from train.model.pretrained import tokens_by_id
from train.objectives import build_objective
from train.training_data import length_at, shrink_at, stretches
from train.vocabulary import Vocabulary

FILES = (
    "zero0",
    "zero1",
    "zero2",
    "zero3",
    "zero1-offload",
    "zero2-offload",
    "zero3-offload",
    "zero3-offload-parameters",
)
NO_DATA = "no-shards"  # stands for data.path where none is given
_ASSUMED_VOCABULARY = 30_522  # of bert-base-uncased
_ROWS = 2048  # of the data set that are looked at
_MOST_ROWS = 1 << 14  # of a micro-batch
_SPECIAL = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where the run is to be."""

    gpu: Device
    gpus: int
    gpus_per_node: int
    network_gbit: float  # of a node
    mfu: float  # of one device alone

    @property
    def nodes(self) -> int:
        return -(-self.gpus // self.gpus_per_node)

    @property
    def links(self) -> Links:
        return Links(self.gpu.link * 1e9, self.network_gbit * 1e9 / 8, self.gpus_per_node)


@dataclass(frozen=True, slots=True)
class Text:
    """The documents of rows, [CLS] and [SEP] included, and what is known of them in words."""

    vocabulary: int
    lengths_D: np.ndarray
    rows: int
    words: str

    @property
    def tokens_per_row(self) -> float:
        return float(self.lengths_D.sum() / self.rows)


@dataclass(frozen=True, slots=True)
class Choice:
    """One ds_config: the memory with and without recomputation, and the largest micro-batches that fit."""

    name: str
    refused: str  # why the run's configuration does not go with it; all else is None then
    recomputed: Memory | None = None
    kept: Memory | None = None
    most_recomputed: int = 0
    most_kept: int = 0


@dataclass(frozen=True, slots=True)
class Speed:
    """A step on so many devices."""

    gpus: int
    micro_batch: int
    accumulation: int
    arithmetic: float  # seconds
    communication: float
    waits: float  # what of the communication the step waits for
    tokens_per_day: float
    days: float  # of the run
    efficiency: float  # beside as many devices that need not speak to each other
    fits: bool

    @property
    def step(self) -> float:
        return self.arithmetic + self.waits


@dataclass(frozen=True, slots=True)
class Estimate:
    """All of it."""

    parameters: dict[str, int]  # encoder, decoder, heads, total
    text: Text
    flops_per_token: float
    tokens: float  # of the run
    choices: list[Choice]
    own: Choice  # that of engine.ds_config
    suggested: int | None  # micro_batch_size, None where nothing fits
    traffic: dict[str, Traffic]  # by ds_config
    speed: Speed
    scaling: list[Speed | int]  # a number: so many devices have no row each
    kilowatt_hours: float


def find_gpu(name: str) -> Device:
    """Raises UserError for a GPU that is not known."""
    found = find_device(name)
    if found is None:
        raise UserError(f"--gpu {name}: not known; one of {', '.join(device.name for device in DEVICES)}")
    return found


def read_text(config: Config, vocabulary: int | None) -> Text:
    """From the data set where it is on this machine; else full rows, and the vocabulary as far as it is known."""
    length = config.data.sequence_length
    paths = [config.data.path] if config.data.path else [source.path for source in config.data.sources]
    if not is_remote(str(paths[0])) and (Path(str(paths[0])) / "manifest.json").is_file():
        manifest = load_manifest(Path(str(paths[0])))
        rules = PackingRules(length, config.data.piece_length, config.data.piece_overlap)
        plan = plan_rows(manifest, "train", rules, _ROWS)
        lengths_D = plan.piece_length_P.astype(np.int64) + SPECIALS_PER_PIECE
        words = (
            f"rows are those of {paths[0]}: {len(lengths_D) / plan.rows:.1f} documents and {{tokens:,.0f}} tokens each"
        )
        return Text(vocabulary or manifest.vocabulary_size, lengths_D, plan.rows, words)
    words = "no shards here: rows are taken as full, one document each"
    if vocabulary is None and config.model.pretrained:
        vocabulary = max(tokens_by_id(Path(config.model.pretrained))) + 1
    if vocabulary is None:
        words += f"; a vocabulary of {_ASSUMED_VOCABULARY:,} is assumed (--vocab-size N)"
    return Text(vocabulary or _ASSUMED_VOCABULARY, np.array([length]), 1, words)


def estimate(config: Config, cluster: Cluster, vocabulary: int | None = None) -> Estimate:
    """Raises UserError where the run itself would be refused."""
    text = read_text(config, vocabulary)
    parameters = count_parameters(config, text.vocabulary)
    gradient_accumulation_steps(config, cluster.gpus)  # raises where the batch does not divide
    peak = cluster.gpu.peak(config.engine.precision)
    if peak is None:
        raise UserError(f"engine.precision {config.engine.precision}: {cluster.gpu.name} has none; use fp16 or fp32")
    width, tokens_per_row = config.model.encoder.hidden_size, round(text.tokens_per_row)
    model = Model(parameters["total"], text.vocabulary, width, measure_activations(config), tokens_per_row)
    own = _choice(config, config.engine.ds_config, model, cluster)
    if own.refused:
        raise UserError(own.refused)
    choices = [_choice(config, f"ds_configs/{name}.json", model, cluster) for name in FILES]
    most = own.most_recomputed if config.model.gradient_checkpointing else own.most_kept
    rows = config.batch.global_batch_size // cluster.gpus
    suggested = max((size for size in range(1, rows + 1) if rows % size == 0 and size <= most), default=None)
    scale = _Scale(config, cluster, text, model, peak)
    speed = scale.speed(cluster.gpus)
    if isinstance(speed, int):
        raise UserError(f"batch.global_batch_size {config.batch.global_batch_size} has no row for each of {speed} GPUs")
    step_tokens = config.batch.global_batch_size * text.tokens_per_row
    return Estimate(
        parameters=parameters,
        text=text,
        flops_per_token=scale.flops(0) / step_tokens,
        tokens=scale.tokens,
        choices=choices,
        own=own,
        suggested=suggested,
        traffic={name: _traffic(config, name, model, cluster) for name in FILES if _is_allowed(choices, name)},
        speed=speed,
        scaling=[scale.speed(2**power) for power in range(3, 11)],
        kilowatt_hours=cluster.gpus * cluster.gpu.watts / 1000 * speed.days * 24,
    )


def count_parameters(config: Config, vocabulary: int) -> dict[str, int]:
    """Of the encoder without its head, the decoder, the heads and the rest; shared ones once."""
    known = Vocabulary(vocabulary, _SPECIAL, np.arange(len(_SPECIAL), vocabulary), len(_SPECIAL), 1.0)
    with torch.device("meta"):
        objective = build_objective(config, known)
    body = {id(p) for p in objective.encoder.masked_lm.base_model.parameters()}
    counts = {"encoder": 0, "decoder": 0, "heads": 0}
    for name, parameter in objective.named_parameters():
        part = "encoder" if id(parameter) in body else "decoder" if name.startswith("decoder.") else "heads"
        counts[part] += parameter.numel()
    return {**counts, "total": sum(counts.values())}


# ---------------------------------------------------------------------------------------------------------------------
# Memory


def _choice(config: Config, file: str, model: Model, cluster: Cluster) -> Choice:
    """What fits under one ds_config. The configuration's own micro-batch is the one whose memory is told."""
    changed = _with_file(config, file)
    name = Path(file).stem
    try:
        ds_config = load_ds_config(changed, cluster.gpus)
    except BertmaeError as error:
        return Choice(name, str(error))
    rows, capacity = config.batch.global_batch_size // cluster.gpus, cluster.gpu.memory * 1e9

    def needed(size: int, *, recomputed: bool) -> Memory:
        several = size < rows
        return memory(changed, ds_config, model, cluster.gpus, size, accumulates=several, recomputed=recomputed)

    found = {again: needed(config.batch.micro_batch_size, recomputed=again) for again in (True, False)}
    most = {again: _most(lambda size, again=again: needed(size, recomputed=again).fits(capacity)) for again in found}
    return Choice(name, "", found[True], found[False], most[True], most[False])


def _most(fits: Any) -> int:
    """The largest micro-batch that fits, 0 where none does."""
    low, high = 0, 1
    while high <= _MOST_ROWS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with_file(config: Config, file: str) -> Config:
    return config.model_copy(update={"engine": config.engine.model_copy(update={"ds_config": file})})


def _is_allowed(choices: list[Choice], name: str) -> bool:
    return any(choice.name == name and not choice.refused for choice in choices)


def _traffic(config: Config, name: str, model: Model, cluster: Cluster) -> Traffic:
    changed = _with_file(config, f"ds_configs/{name}.json")
    accumulation = gradient_accumulation_steps(config, cluster.gpus)
    return traffic(changed, load_ds_config(changed, cluster.gpus), model.parameters, cluster.gpus, accumulation)


# ---------------------------------------------------------------------------------------------------------------------
# Time


@dataclass(frozen=True, slots=True)
class _Scale:
    """The run on any number of devices."""

    config: Config
    cluster: Cluster
    text: Text
    model: Model
    peak: float  # TFLOP/s

    def flops(self, step: int) -> float:
        """Of the step that follows so many completed ones."""
        return training_flops(self.config, self.text.vocabulary, self._lengths(step), step) * self._rows(step)

    @property
    def tokens(self) -> float:
        """Of the whole run."""
        counts = ((end - at) * self._lengths(at).sum() * self._rows(at) for at, end in stretches(self.config))
        return float(sum(counts))

    def speed(self, gpus: int) -> Speed | int:
        """Steps on so many devices; the number itself where there are more devices than rows."""
        rows = self.config.batch.global_batch_size // gpus
        if rows < 1:
            return gpus
        micro = max(size for size in range(1, min(rows, self.config.batch.micro_batch_size) + 1) if rows % size == 0)
        batch = self.config.batch.model_copy(update={"global_batch_size": rows * gpus, "micro_batch_size": micro})
        batch = batch.model_copy(update={"global_batch_size_at": ()})
        config = self.config.model_copy(update={"batch": batch})
        ds_config = load_ds_config(config, gpus)
        sent = traffic(config, ds_config, self.model.parameters, gpus, rows // micro)
        arithmetic = self._arithmetic(0, gpus)
        communication, waits = seconds(sent, self.cluster.links, gpus, arithmetic)
        needed = memory(config, ds_config, self.model, gpus, micro, accumulates=rows > micro)
        total = sum((end - at) * (self._arithmetic(at, gpus) + waits) for at, end in stretches(self.config))
        step = arithmetic + waits
        return Speed(
            gpus=gpus,
            micro_batch=micro,
            accumulation=rows // micro,
            arithmetic=arithmetic,
            communication=communication,
            waits=waits,
            tokens_per_day=self.tokens / total * DAY,
            days=total / DAY,
            efficiency=arithmetic / step,
            fits=needed.fits(self.cluster.gpu.memory * 1e9),
        )

    def _arithmetic(self, step: int, gpus: int) -> float:
        return self.flops(step) / (gpus * self.cluster.mfu * self.peak * 1e12)

    def _lengths(self, step: int) -> np.ndarray:
        """Of the looked-at documents; after a change of the length, of full rows."""
        length = length_at(self.config, step)
        if length == self.config.data.sequence_length:
            return self.text.lengths_D
        return np.full(self.text.rows, length)

    def _rows(self, step: int) -> float:
        """How often the looked-at rows are in a global batch."""
        return global_batch_size(self.config.batch, step) / shrink_at(self.config, step) / self.text.rows


def room(cluster: Cluster) -> float:
    """Bytes of a device that tensors can have."""
    return usable(cluster.gpu.memory * 1e9)
