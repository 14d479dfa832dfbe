"""Masked language modelling and reconstruction in one step: one pass of the encoder feeds both losses.

The encoder sees only the kept tokens (see mae.py); a share of those is masked as in mlm.py and predicted by the head
on the encoder, while the decoder rebuilds the dropped ones. No token is a target of both.

Legend: T tokens, K kept tokens, M masked tokens, N dropped tokens, D documents or width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.model.decoder import Decoder
from train.model.documents import Documents
from train.model.encoder import Encoder
from train.objectives.mae import Split
from train.objectives.masking import Chance, ordinary
from train.objectives.objective import UNSEEN, Asked, HeadSums, Objective, stack
from train.objectives.units import Chosen
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Both:
    """The dropped and the masked tokens of a batch, and the ids that the encoder sees where it sees any."""

    documents: Documents
    dropped: Chosen
    masked: Chosen
    seen_T: torch.Tensor


class Joint(Objective[Both]):
    """MLM head on the encoder, decoder on what the encoder never saw."""

    heads = ("mlm", "reconstruction")

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        self.decoder = Decoder(config.model, vocabulary.size)

    def weights(self) -> tuple[float, ...]:
        return self.settings.mlm_weight, self.settings.reconstruction_weight

    def select(self, batch: Batch, step: int | None = None) -> Both:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        dropped = self.dropped(batch, documents)
        masked = self.masked(batch, documents, ordinary(documents) & ~dropped.flags_T, step)
        return Both(documents, dropped, masked, self.corrupted(batch, documents, masked))

    def target_counts(self, selection: Both) -> np.ndarray:
        return np.array([chosen.counts_D.sum() for chosen in (selection.masked, selection.dropped)])

    def asked(self, batch: Batch, selection: Both) -> list[Asked]:
        shown_T = selection.seen_T.masked_fill(selection.dropped.flags_T, UNSEEN)
        return [Asked(chosen.places_N, shown_T) for chosen in (selection.masked, selection.dropped)]

    def forward(self, batch: Batch, selection: Both) -> HeadSums:
        split, masked_M = Split.of(selection.documents, selection.dropped), selection.masked.places_N
        seen_K = selection.seen_T[split.kept_K]
        kept_KD = self.encoder(seen_K, split.positions_T[split.kept_K], split.kept_documents)
        # The number of a token among the kept ones: those before it, less those of them that were dropped.
        before_T = selection.dropped.flags_T.long().cumsum(0)
        mlm = self.mlm_score(kept_KD[masked_M - before_T[masked_M]], batch.ids_T[masked_M])
        hidden_TD = self.decoder(kept_KD, split.kept_K, split.positions_T, split.documents)
        states_ND = self.decoder.head(hidden_TD[split.dropped_N])
        return stack(mlm, self.score(states_ND, self.decoder.bias, batch.ids_T[split.dropped_N]))
