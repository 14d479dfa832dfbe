"""Masked autoencoding of text: the encoder sees only what is kept, the decoder rebuilds what was dropped.

He et al. 2021 and Meng et al. 2023 (MAE-LM): kept tokens keep their original positions; [CLS] and [SEP] always stay;
the encoder meets no mask token; loss on the dropped positions over the vocabulary.

Legend: T tokens, K kept tokens, N dropped tokens, D documents or width.
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
from train.objectives.masking import Chance, places
from train.objectives.objective import UNSEEN, Asked, HeadSums, Objective, stack
from train.objectives.units import Chosen
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Dropped:
    """The dropped tokens of a batch."""

    documents: Documents
    chosen: Chosen


@dataclass(frozen=True, slots=True)
class Split:
    """Kept and dropped tokens of a batch. The kept ones of a document are simply a shorter document."""

    documents: Documents
    positions_T: torch.Tensor
    kept_K: torch.Tensor
    dropped_N: torch.Tensor
    kept_documents: Documents

    @classmethod
    def of(cls, documents: Documents, chosen: Chosen) -> Split:
        """Waits until the numbers of dropped tokens are on the host."""
        left_D = documents.lengths_D - chosen.counts_D
        kept_T = chosen.flags_T.logical_not()
        return cls(
            documents=documents,
            positions_T=documents.positions_T,
            kept_K=places(kept_T, int(left_D.sum())),
            dropped_N=chosen.places_N,
            kept_documents=Documents.of(left_D, chosen.flags_T.device),
        )


class MaskedAutoencoder(Objective[Dropped]):
    """The cost of the encoder falls by the share that is dropped: kept tokens are all it ever sees."""

    heads = ("reconstruction",)

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        self.decoder = Decoder(config.model, vocabulary.size)

    def select(self, batch: Batch, step: int | None = None) -> Dropped:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        return Dropped(documents, self.dropped(batch, documents))

    def target_counts(self, selection: Dropped) -> np.ndarray:
        return np.array([selection.chosen.counts_D.sum()])

    def asked(self, batch: Batch, selection: Dropped) -> list[Asked]:
        chosen = selection.chosen
        return [Asked(chosen.places_N, batch.ids_T.masked_fill(chosen.flags_T, UNSEEN))]

    def forward(self, batch: Batch, selection: Dropped) -> HeadSums:
        split = Split.of(selection.documents, selection.chosen)
        kept_KD = self.encoder(batch.ids_T[split.kept_K], split.positions_T[split.kept_K], split.kept_documents)
        hidden_TD = self.decoder(kept_KD, split.kept_K, split.positions_T, split.documents)
        states_ND = self.decoder.head(hidden_TD[split.dropped_N])
        return stack(self.score(states_ND, self.decoder.bias, batch.ids_T[split.dropped_N]))
