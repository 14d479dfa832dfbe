"""Masked language modelling: Devlin et al. 2018, with masks drawn anew each epoch (RoBERTa) and no next sentence.

Legend: T tokens, N targets, D documents.
"""

from __future__ import annotations

import numpy as np

from train.data.batch import Batch
from train.model.documents import Documents
from train.objectives.masking import SELECT, choose, exact_counts, ordinary
from train.objectives.objective import HeadSums, Objective, score, stack


class MaskedLanguageModel(Objective):
    """A share of each document's tokens becomes targets; the head sees the encoder's states at the targets only."""

    heads = ("mlm",)

    def target_counts(self, lengths_D: np.ndarray) -> np.ndarray:
        return np.array([exact_counts(lengths_D - 2, self.settings.mask_ratio).sum()])

    def forward(self, batch: Batch) -> HeadSums:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        counts_D = exact_counts(documents.lengths_D - 2, self.settings.mask_ratio)
        words_T = self.chance.words(SELECT, batch, documents)
        targets_N = choose(words_T, ordinary(documents), documents, counts_D)
        ids_T = batch.ids_T.index_copy(0, targets_N, self.corrupted(batch, documents, targets_N))
        hidden_TD = self.encoder(ids_T, documents.positions_T, documents)
        logits_NV = self.encoder.logits(hidden_TD[targets_N])
        return stack(score(logits_NV, batch.ids_T[targets_N], self.vocabulary.most_frequent_id))
