"""What masked autoencoding saves is measured against this: the same model whose encoder meets mask tokens.

The encoder sees every token, with [MASK] where a token is dropped; its states there are then left out. Decoder, targets
and loss are those of the masked autoencoder, so the encoder's length is all that differs.

Legend: T tokens, K kept tokens, D width.
"""

from train.data.batch import Batch
from train.objectives.mae import Dropped, MaskedAutoencoder, Split
from train.objectives.objective import HeadSums, stack


class MaskTokenEncoder(MaskedAutoencoder):
    """An encoder as long as the text."""

    def forward(self, batch: Batch, selection: Dropped) -> HeadSums:
        split = Split.of(selection.documents, selection.chosen)
        seen_T = batch.ids_T.masked_fill(selection.chosen.flags_T, self.vocabulary.special_ids["mask"])
        hidden_TD = self.encoder(seen_T, split.positions_T, split.documents)[split.kept_K]
        hidden_TD = self.decoder(hidden_TD, split.kept_K, split.positions_T, split.documents)
        states_ND = self.decoder.head(hidden_TD[split.dropped_N])
        return stack(self.score(states_ND, self.decoder.bias, batch.ids_T[split.dropped_N]))
