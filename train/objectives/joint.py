"""Masked language modelling and reconstruction in one step: one pass of the encoder feeds both losses.

The encoder sees only the kept tokens (see mae.py); a share of those is masked as in mlm.py and predicted by the head
on the encoder, while the decoder rebuilds the dropped ones. No token is a target of both.

Legend: T tokens, K kept tokens, M masked tokens, D documents or width.
"""

from __future__ import annotations

import numpy as np
import torch

from train.data.batch import Batch
from train.model.documents import Documents
from train.objectives.mae import MaskedAutoencoder, Split
from train.objectives.masking import SELECT, choose, exact_counts, ordinary
from train.objectives.objective import HeadSums, score, stack


class Joint(MaskedAutoencoder):
    """MLM head on the encoder, decoder on what the encoder never saw."""

    heads = ("mlm", "reconstruction")

    def weights(self) -> tuple[float, ...]:
        return self.settings.mlm_weight, self.settings.reconstruction_weight

    def target_counts(self, lengths_D: np.ndarray) -> np.ndarray:
        dropped_D = exact_counts(lengths_D - 2, self.settings.drop_ratio)
        masked_D = exact_counts(lengths_D - 2 - dropped_D, self.settings.mask_ratio)
        return np.array([masked_D.sum(), dropped_D.sum()])

    def forward(self, batch: Batch) -> HeadSums:
        split = self.split(batch)
        masked_M = self.mask(batch, split)  # places among the kept tokens
        truth_K = batch.ids_T[split.kept_K]
        seen_K = truth_K.index_copy(0, masked_M, self.corrupted(batch, split.documents, split.kept_K[masked_M]))
        kept_KD = self.encoder(seen_K, split.positions_T[split.kept_K], split.kept_documents)
        logits_MV = self.encoder.logits(kept_KD[masked_M])
        mlm = score(logits_MV, truth_K[masked_M], self.vocabulary.most_frequent_id)
        return stack(mlm, self.reconstruct(kept_KD, split, batch))

    def mask(self, batch: Batch, split: Split) -> torch.Tensor:
        """Choose the masked tokens among the kept ordinary ones."""
        kept: Documents = split.kept_documents
        words_K = self.chance.words(SELECT, batch, split.documents)[split.kept_K]
        return choose(words_K, ordinary(kept), kept, exact_counts(kept.lengths_D - 2, self.settings.mask_ratio))
