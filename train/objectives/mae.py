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
from train.objectives.masking import DROP, Chance, choose, exact_counts, ordinary, others
from train.objectives.objective import HeadSums, Objective, score, stack
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Split:
    """Kept and dropped tokens of a batch. The kept ones of a document are simply a shorter document."""

    documents: Documents
    positions_T: torch.Tensor
    kept_K: torch.Tensor
    dropped_N: torch.Tensor
    kept_documents: Documents


class MaskedAutoencoder(Objective):
    """The cost of the encoder falls by the share that is dropped: kept tokens are all it ever sees."""

    heads: tuple[str, ...] = ("reconstruction",)

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        self.decoder = Decoder(config.model, vocabulary.size)

    def target_counts(self, lengths_D: np.ndarray) -> np.ndarray:
        return np.array([exact_counts(lengths_D - 2, self.settings.drop_ratio).sum()])

    def forward(self, batch: Batch) -> HeadSums:
        split = self.split(batch)
        kept_KD = self.encoder(batch.ids_T[split.kept_K], split.positions_T[split.kept_K], split.kept_documents)
        return stack(self.reconstruct(kept_KD, split, batch))

    def split(self, batch: Batch) -> Split:
        """Drop a uniformly random exact share of each document's ordinary tokens."""
        device = batch.ids_T.device
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        counts_D = exact_counts(documents.lengths_D - 2, self.settings.drop_ratio)
        words_T = self.chance.words(DROP, batch, documents)
        dropped_N = choose(words_T, ordinary(documents), documents, counts_D)
        return Split(
            documents=documents,
            positions_T=documents.positions_T,
            kept_K=others(dropped_N, documents.tokens),
            dropped_N=dropped_N,
            kept_documents=Documents.of(documents.lengths_D - counts_D, device),
        )

    def reconstruct(self, kept_KD: torch.Tensor, split: Split, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and hits of the decoder at the dropped tokens."""
        hidden_TD = self.decoder(kept_KD, split.kept_K, split.positions_T, split.documents)
        logits_NV = self.decoder.logits(hidden_TD[split.dropped_N], self.encoder.embedding_VD)
        return score(logits_NV, batch.ids_T[split.dropped_N], self.vocabulary.most_frequent_id)
