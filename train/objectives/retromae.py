"""RetroMAE: the state of [CLS] alone must carry the document, because the decoder sees little else.

Xiao et al. 2022, "RetroMAE", section 3: the encoder learns by masked language modelling; a decoder of one layer
predicts every ordinary token from h, the encoder's last state at [CLS], and from clean tokens, of which each query sees
another random part. Queries are h + p_i, keys and values [h, e_1 + p_1, ..., e_n + p_n]; both losses share the head.

Of a query i every word is hidden with the probability decoder_mask_ratio, independently of all others: a 64-bit hash of
the random word of token i and of the place where word j begins is compared with it. Token i itself is always hidden; h
and [SEP] never are.

Legend: T tokens, N targets, D documents or width, B documents of a bucket, L their padded length.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.model.buckets import Bucket, Buckets
from train.model.documents import Documents
from train.model.encoder import Encoder
from train.model.enhanced_decoder import EnhancedDecoder, Seen, documents_per_bucket
from train.objectives import rng
from train.objectives.masking import VISIBLE, Chance, ordinary, places
from train.objectives.objective import UNSEEN, Asked, HeadSums, Objective, stack
from train.objectives.units import Chosen
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Compressed:
    """The MLM targets of a batch, and the ids that the encoder sees."""

    documents: Documents
    targets: Chosen
    seen_T: torch.Tensor
    shuffled: bool = False  # whether the decoder gets the state of another document


class RetroMae(Objective[Compressed]):
    """Masked language modelling, and a decoder that leans on the state of [CLS]."""

    heads: tuple[str, ...] = ("mlm", "decoder")

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        self.decoder = EnhancedDecoder(encoder, config.model)

    def weights(self) -> tuple[float, ...]:
        return self.settings.mlm_weight, self.settings.reconstruction_weight

    def select(self, batch: Batch, step: int | None = None) -> Compressed:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        targets = self.masked(batch, documents, ordinary(documents), step)
        return Compressed(documents, targets, self.corrupted(batch, documents, targets))

    def target_counts(self, selection: Compressed) -> np.ndarray:
        return np.array([selection.targets.counts_D.sum(), _ordinary_tokens(selection.documents)])

    def asked(self, batch: Batch, selection: Compressed) -> list[Asked]:
        """The decoder sees another part of the document for each of its tokens, and never the token itself."""
        documents = selection.documents
        hidden_T = batch.ids_T.masked_fill(ordinary(documents), UNSEEN)
        encoder = Asked(selection.targets.places_N, selection.seen_T)
        return [encoder, Asked(self._ordinary_places(documents), hidden_T)]

    def forward(self, batch: Batch, selection: Compressed) -> HeadSums:
        documents = selection.documents
        hidden_TD = self.encoder(selection.seen_T, documents.positions_T, documents)
        return stack(*self.scores(batch, selection, hidden_TD))

    def scores(
        self, batch: Batch, selection: Compressed, hidden_TD: torch.Tensor
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Loss and hits of each head from the encoder's states."""
        targets_N, all_N = selection.targets.places_N, self._ordinary_places(selection.documents)
        mlm = self.mlm_score(hidden_TD[targets_N], batch.ids_T[targets_N])
        rebuilt_TD = self._decode(batch, selection, hidden_TD)
        return [mlm, self.mlm_score(rebuilt_TD[all_N], batch.ids_T[all_N])]

    def shuffled(self, selection: Compressed) -> Compressed:
        """The same selection, with which `forward` gives the decoder the state of the document before.

        A decoder that loses nothing by it learns from its visible tokens alone, and the state of [CLS] carries nothing.
        """
        return replace(selection, shuffled=True)

    def _decode(self, batch: Batch, selection: Compressed, hidden_TD: torch.Tensor) -> torch.Tensor:
        """The decoder's states [T, D]."""
        documents, positions_T = selection.documents, selection.documents.positions_T
        first_D = documents.cu_seqlens_D1[:-1].long()
        sentence_DD = hidden_TD[first_D]
        if selection.shuffled:
            sentence_DD = sentence_DD.roll(1, 0)
        # At least in fp32, because the gradient at h is a sum over all tokens of its document.
        wide_DD = sentence_DD.to(torch.promote_types(sentence_DD.dtype, torch.float32))
        sentence_TD = wide_DD.index_select(0, documents.index_T).to(hidden_TD.dtype)
        if self.settings.decoder_query == "positions":
            query_TD = sentence_TD + self.decoder.position_vectors(self.encoder, positions_T)
        else:
            query_TD = self.decoder.embedded(self.encoder, positions_T, inputs_embeds=sentence_TD)
        clean_TD = self.decoder.embedded(self.encoder, positions_T, input_ids=batch.ids_T)
        key_TD = clean_TD.index_copy(0, first_D, sentence_DD.to(clean_TD.dtype))
        buckets = Buckets.of(documents, documents_per_bucket)
        return self.decoder(query_TD, key_TD, buckets, self._seen(batch, documents))  # type: ignore[no-any-return]

    def _seen(self, batch: Batch, documents: Documents) -> Seen:
        """What each query sees of a bucket."""
        ordinary_T, word_T = ordinary(documents), _word_positions(batch, documents)
        draw_T = self.chance.words(VISIBLE, batch, documents)

        def seen(bucket: Bucket) -> torch.Tensor:
            places_BL = bucket.places_BL
            draw_BL1, word_B1L = draw_T[places_BL][:, :, None], word_T[places_BL][:, None, :]
            chance_BLL = rng.hash_words(self.chance.seed, batch.epoch, VISIBLE, draw_BL1, word_B1L)
            itself_LL = torch.eye(places_BL.shape[1], dtype=torch.bool, device=places_BL.device)
            hidden_BLL = rng.below(self.settings.decoder_mask_ratio, chance_BLL) | itself_LL
            return ~(hidden_BLL & ordinary_T[places_BL][:, None, :]) & bucket.real_BL[:, None, :]

        return seen

    def _ordinary_places(self, documents: Documents) -> torch.Tensor:
        return places(ordinary(documents), _ordinary_tokens(documents))


def _word_positions(batch: Batch, documents: Documents) -> torch.Tensor:
    """The position [T] where the word of each token begins; [CLS] begins one in every document."""
    if batch.word_starts_T is None:
        raise ValueError("retromae hides whole words: the batch must come with word starts")
    place_T = torch.arange(len(batch.ids_T), device=batch.ids_T.device)
    return torch.where(batch.word_starts_T, place_T, 0).cummax(0).values - documents.starts_T


def _ordinary_tokens(documents: Documents) -> int:
    return int((documents.lengths_D - 2).sum())
