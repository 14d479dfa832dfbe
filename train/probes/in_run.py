"""Probes during a run: vectors shared out over the ranks, measured by rank 0, the same at any number of ranks.

Nothing of it touches the training: no gradients, no random numbers, no data of the run.

Legend: T tokens, N texts, D documents of a batch or width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from train.config import Config
from train.distributed import Ranks, on_first_rank
from train.engine import Engine
from train.model.documents import Documents
from train.monitor.logs import log
from train.probes.open import open_probes, sentences
from train.probes.probe import POOLINGS, Probe, measured
from train.pulse import WAITING
from train.signals import StopRequest

Record = dict[str, float]
_BATCH_TOKENS = 8192  # of a forward pass; a step of the training takes more memory for as many


class RunProbes:
    """The probes of a run. Rank 0 alone reads their files; every rank gets the token ids."""

    def __init__(self, config: Config, ranks: Ranks) -> None:
        """Every rank comes here. Raises UserError and DataError on all of them."""
        self._ranks, self._config = ranks, config
        self._probes: list[Probe] = []
        ids = on_first_rank(ranks, self._read) if config.probes.are_there else []
        self._ids_N = [np.array(text, dtype=np.int64) for text in ids]
        self._batches = list(_batches([len(ids_T) for ids_T in self._ids_N]))

    @property
    def are_there(self) -> bool:
        return bool(self._batches)

    def are_due(self, step: int, *, last: bool) -> bool:
        """After `step` steps; at the `last` one as well."""
        return self.are_there and (last or step % self._config.probes.interval_steps == 0)

    def measure(self, engine: Engine, stop: StopRequest) -> Record | None:
        """The metrics of every probe, on all ranks. None where any of them was asked to stop before the last batch."""
        vectors_N2W = self.vectors(engine, stop)
        return None if vectors_N2W is None else on_first_rank(self._ranks, lambda: self._scores(vectors_N2W))

    def vectors(self, engine: Engine, stop: StopRequest) -> torch.Tensor | None:
        """The vectors of all texts on the host of rank 0, [N, 2, W]; the other ranks get those that they made."""
        ranks, own = self._ranks, []
        engine.eval()
        try:
            for number in range(ranks.rank, _whole_rounds(len(self._batches), ranks.world_size), ranks.world_size):
                if any(ranks.sum([int(stop.reason is not None)])):
                    return None
                # A rank that has no batch left computes one again: under ZeRO-3 the weights are gathered by all.
                vectors_D2W = self._encode(engine, self._batches[number % len(self._batches)])
                own.append(vectors_D2W if number < len(self._batches) else vectors_D2W[:0])
        finally:
            engine.train()
        return self._gathered(torch.cat(own))

    def _read(self) -> list[list[int]]:
        """Texts of all probes, one after another, as the tokens that a user of the exported model would have."""
        from transformers import AutoTokenizer

        self._ranks.pulse.says("reads the probes")
        self._probes = open_probes(self._config.probes)
        for sentence in sentences(self._probes):
            log.info(sentence)
        folder = Path(self._config.run.directory) / "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        most = min(self._config.probes.max_length, self._config.model.encoder.max_position_embeddings)
        texts = [text for probe in self._probes for text in probe.texts]
        ids: list[list[int]] = tokenizer(texts, truncation=True, max_length=most)["input_ids"]
        return ids

    def _encode(self, engine: Engine, numbers: Sequence[int]) -> torch.Tensor:
        """The vectors of one batch on the host, [D, 2, W]."""
        ids_D = [self._ids_N[number] for number in numbers]
        lengths_D = np.array([len(ids_T) for ids_T in ids_D])
        device = self._ranks.device
        documents = Documents.of(lengths_D, device)
        return engine.encode(torch.from_numpy(np.concatenate(ids_D)).to(device), documents).cpu()

    def _gathered(self, own_N2W: torch.Tensor) -> torch.Tensor:
        """The vectors of all texts in their order, on rank 0; the others get what they have."""
        ranks = self._ranks
        batches_R = [self._batches[rank :: ranks.world_size] for rank in range(ranks.world_size)]
        numbers_R = [[number for batch in batches for number in batch] for batches in batches_R]
        parts_R = [own_N2W]
        if ranks.world_size > 1:
            most = max(map(len, numbers_R))
            padded = torch.cat([own_N2W, own_N2W.new_zeros(most - len(own_N2W), *own_N2W.shape[1:])])
            parts_R = [torch.empty_like(padded) for _ in numbers_R] if ranks.rank == 0 else []
            before = ranks.pulse.says(WAITING)
            dist.gather(padded, parts_R or None, group=ranks.host_group)
            ranks.pulse.says(before)
        if ranks.rank:
            return own_N2W
        vectors_N2W = own_N2W.new_empty(len(self._ids_N), *own_N2W.shape[1:])
        for numbers, part in zip(numbers_R, parts_R, strict=True):
            vectors_N2W[numbers] = part[: len(numbers)]
        return vectors_N2W

    def _scores(self, vectors_N2W: torch.Tensor) -> Record:
        record: Record = {}
        start = 0
        for probe in self._probes:
            self._ranks.pulse.says(f"measures the probe {probe.name}")
            part_N2W = vectors_N2W[start : start + len(probe.texts)].numpy()
            record |= measured(probe, {name: part_N2W[:, i] for i, name in enumerate(POOLINGS)}).record()
            start += len(probe.texts)
        return record


def _batches(lengths_N: Sequence[int]) -> Iterator[list[int]]:
    """The numbers of texts that go together, of about one length; whatever the number of ranks, so that the rounding of
    their sums is the same."""
    batch: list[int] = []
    tokens = 0
    for number in sorted(range(len(lengths_N)), key=lambda number: -lengths_N[number]):
        if batch and tokens + lengths_N[number] > _BATCH_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += lengths_N[number]
    if batch:
        yield batch


def _whole_rounds(batches: int, world_size: int) -> int:
    """Batches, with so many more that every rank has the same number."""
    return math.ceil(batches / world_size) * world_size
