"""DupMAE: RetroMAE, and a loss with which all other states of the encoder tell the document's set of tokens.

Xiao et al. 2023 ("RetroMAE-2", duplex masked autoencoder): the logits of masked language modelling at all ordinary
tokens of the masked input, max-pooled over the document. Its loss counts documents, not tokens.
"""

from __future__ import annotations

import numpy as np
import torch

from train.data.batch import Batch
from train.model.bag_of_words import bag_of_words
from train.objectives.masking import ordinary
from train.objectives.retromae import Compressed, RetroMae


class DupMae(RetroMae):
    """RetroMAE with a head for the bag of words."""

    heads = ("mlm", "decoder", "bag_of_words")

    def weights(self) -> tuple[float, ...]:
        return *super().weights(), self.settings.bag_of_words_weight

    def target_counts(self, selection: Compressed) -> np.ndarray:
        return np.append(super().target_counts(selection), (selection.documents.lengths_D > 2).sum())

    def scores(
        self, batch: Batch, selection: Compressed, hidden_TD: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        documents, encoder = selection.documents, self.encoder
        projection = encoder.head(hidden_TD), encoder.output_VD, encoder.output_bias_V
        text = batch.ids_T, ordinary(documents), documents
        bag = bag_of_words(*projection, *text, self.vocabulary.most_frequent_id)
        return [*super().scores(batch, selection, hidden_TD), bag]
