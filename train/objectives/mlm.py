"""Masked language modelling: Devlin et al. 2018, with masks drawn anew each epoch (RoBERTa) and no next sentence.

With `boundary_weight` a second head predicts the targets of a run from what stands beside it: SpanBERT's objective.

Legend: T tokens, N targets, D documents or width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.model.boundary import BoundaryHead
from train.model.documents import Documents
from train.model.encoder import Encoder
from train.objectives.masking import Chance, ordinary
from train.objectives.objective import Asked, HeadSums, Objective, stack
from train.objectives.units import Chosen
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Masked:
    """The targets of a batch, and the ids that the encoder sees."""

    documents: Documents
    targets: Chosen
    seen_T: torch.Tensor


class MaskedLanguageModel(Objective[Masked]):
    """A share of each document's tokens becomes targets; the head sees the encoder's states at the targets only."""

    heads: tuple[str, ...] = ("mlm",)

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        self.boundary: BoundaryHead | None = None
        if self.settings.boundary_weight:
            self.heads = ("mlm", "boundary")
            self.boundary = BoundaryHead(config.model.encoder, vocabulary.size)

    def weights(self) -> tuple[float, ...]:
        return (1.0, self.settings.boundary_weight)[: len(self.heads)]

    def select(self, batch: Batch, step: int | None = None) -> Masked:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        targets = self.masked(batch, documents, ordinary(documents), step)
        return Masked(documents, targets, self.corrupted(batch, documents, targets))

    def target_counts(self, selection: Masked) -> np.ndarray:
        return np.full(len(self.heads), selection.targets.counts_D.sum())

    def asked(self, batch: Batch, selection: Masked) -> list[Asked]:
        return [Asked(selection.targets.places_N, selection.seen_T)] * len(self.heads)

    def forward(self, batch: Batch, selection: Masked) -> HeadSums:
        documents, places_N = selection.documents, selection.targets.places_N
        hidden_TD = self.encoder(selection.seen_T, documents.positions_T, documents)
        truth_N = batch.ids_T[places_N]
        scores = [self.mlm_score(hidden_TD[places_N], truth_N)]
        if self.boundary is not None:
            beside_ND = self.boundary(hidden_TD, selection.targets.flags_T, places_N)
            scores.append(self.score(beside_ND, self.boundary.bias, truth_N))
        return stack(*scores)
