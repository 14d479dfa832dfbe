"""Masked autoencoding of latents: the encoder sees the whole text, a part of its states is lost, the decoder rebuilds.

"The encoder turns the sequence into latent representations, a mask layer masks the encoded representations, the decoder
rebuilds the original sequence": lost states are one learned vector for the decoder; [CLS] and [SEP] are never lost.
Loss on the masked places, or on all ordinary tokens.

Legend: T tokens, K kept states, N targets, D documents or width.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from train.data.batch import Batch
from train.objectives.mae import Dropped, MaskedAutoencoder, Split
from train.objectives.masking import ordinary, places
from train.objectives.objective import Asked, HeadSums, stack


class LatentMaskedAutoencoder(MaskedAutoencoder):
    """What is dropped is drawn as in masked autoencoding; the mask layer stands between encoder and decoder."""

    def target_counts(self, selection: Dropped) -> np.ndarray:
        if self.settings.reconstruct == "all":
            return np.array([(selection.documents.lengths_D - 2).sum()])
        return super().target_counts(selection)

    def asked(self, batch: Batch, selection: Dropped) -> list[Asked]:
        [lost] = super().asked(batch, selection)
        return [replace(lost, places_N=self._places(selection))]

    def forward(self, batch: Batch, selection: Dropped) -> HeadSums:
        split = Split.of(selection.documents, selection.chosen)
        latent_TD = self.encoder(batch.ids_T, split.positions_T, split.documents)
        hidden_TD = self.decoder(latent_TD[split.kept_K], split.kept_K, split.positions_T, split.documents)
        places_N = self._places(selection)
        states_ND = self.decoder.head(hidden_TD[places_N])
        return stack(self.score(states_ND, self.decoder.bias, batch.ids_T[places_N]))

    def _places(self, selection: Dropped) -> torch.Tensor:
        if self.settings.reconstruct == "all":
            return places(ordinary(selection.documents), int(self.target_counts(selection)[0]))
        return selection.chosen.places_N
