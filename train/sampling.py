"""Asks the model of a run about a few fixed held-out documents, after a validation and with its masks.

Nothing of it touches the training: no gradients, no random numbers, no data of the run.

Legend: T tokens, N targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch.utils.tensorboard.summary import text

from data_pipeline.manifest import Manifest
from train.config import Config
from train.data.batch import Batch
from train.data.held_out import HeldOutRows, first_documents
from train.distributed import Ranks, together
from train.engine import Engine
from train.monitor.recorder import Writers
from train.monitor.samples import UNSEEN, Sample, page, record
from train.objectives.objective import UNSEEN as UNSEEN_ID
from train.objectives.objective import Asked
from train.seen_rows import token_names
from train.signals import StopRequest

_MOST_SHOWN = 64  # tokens of a document; the model sees all of it
_NO_TARGET = -1


class Samples:
    """Every rank predicts, because under ZeRO-3 the weights are gathered by all; rank 0 writes."""

    def __init__(
        self,
        config: Config,
        ranks: Ranks,
        held_out: Sequence[HeldOutRows],
        manifest: Manifest,
        writers: Writers | None,
    ) -> None:
        self._ranks, self._held_out, self._manifest, self._writers = ranks, held_out, manifest, writers
        self._count = config.validation.samples
        self._batch: Batch | None = None
        self._names_V: list[str] = []

    def write(self, engine: Engine, step: int, stop: StopRequest) -> None:
        """Write what the model predicts after `step` steps; nothing where any rank was asked to stop.

        Every rank comes here. Raises UserError and DataError on all of them.
        """
        if not self._count or any(self._ranks.sum([int(stop.reason is not None)])):
            return
        batch = self._opened()
        if batch is None:
            return
        found = self._predicted(engine, batch)
        if self._writers is None:
            return
        self._writers.samples.write(record(step, found))
        for head in found[0]:
            samples = [document[head] for document in found]
            self._writers.show(text(f"samples/{head}", page(samples)), step)

    def _predicted(self, engine: Engine, read: Batch) -> list[dict[str, Sample]]:
        """The samples of each document by head, on rank 0; the other ranks take part, and get none."""
        batch = read.to(self._ranks.device)
        engine.eval()
        try:
            selection = engine.module.select(batch)
            guessed = engine.predict(batch, selection)
        finally:
            engine.train()
        if self._ranks.rank:
            return []
        heads = engine.module.heads[: len(guessed)]
        asked = engine.module.asked(batch, selection)
        by_head = [self._samples(batch, *pair) for pair in zip(asked, guessed, strict=True)]
        return [dict(zip(heads, document, strict=True)) for document in zip(*by_head, strict=True)]

    def _opened(self) -> Batch | None:
        """The documents, which are read once; None on all ranks where any has none."""
        if self._batch is None:
            self._ranks.pulse.says("reads held-out documents")
            self._batch, self._names_V = together(self._ranks, self._read)
            if any(self._ranks.sum([int(self._batch is None)])):
                self._batch, self._count = None, 0
        return self._batch

    def _read(self) -> tuple[Batch | None, list[str]]:
        batch = first_documents(self._held_out, self._count)
        return batch, [] if self._ranks.rank else token_names(self._manifest)

    def _samples(self, batch: Batch, asked: Asked, guessed_N: torch.Tensor) -> list[Sample]:
        """One head's samples of each document, without [CLS] and [SEP]."""
        has_place_N = asked.places_N >= 0
        predicted_T = torch.full_like(batch.ids_T, _NO_TARGET)
        predicted_T[asked.places_N[has_place_N]] = guessed_N[has_place_N]
        lists = [ids_T.tolist() for ids_T in (batch.ids_T, asked.shown_T, predicted_T)]
        bounds = [
            (start + 1, min(end - 1, start + 1 + _MOST_SHOWN)) for start, end in pairwise(batch.cu_seqlens_D1.tolist())
        ]
        return [self._sample(*(ids[start:end] for ids in lists)) for start, end in bounds]

    def _sample(self, truth: list[int], shown: list[int], predicted: list[int]) -> Sample:
        return Sample(
            [self._name(i) for i in truth],
            [UNSEEN if i == UNSEEN_ID else self._name(i) for i in shown],
            [None if i == _NO_TARGET else self._name(i) for i in predicted],
        )

    def _name(self, token: int) -> str:
        """Of a token, or of a sentinel of span corruption, which stand behind the vocabulary."""
        sentinel = token - len(self._names_V)
        return self._names_V[token] if sentinel < 0 else f"<{sentinel}>"
