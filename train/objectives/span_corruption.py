"""Span corruption: the encoder sees one sentinel for every noise span, the decoder writes sentinels and spans.

Raffel et al. 2020 (T5), sections 3.1.4 and 3.3.4, and random_spans_noise_mask of its code: of n ordinary tokens
round(mask_ratio n) are noise, in round(noise / mean_span_length) spans. Both kinds of token are cut uniformly at random
into as many positive parts as there are spans; the parts alternate and begin with one that is kept. The target is
<s0> noise 0 <s1> noise 1 ... [SEP], without T5's last sentinel; the decoder's input is the target one place later,
behind [CLS]. All of the target counts. Sentinels are rows of a table beside the vocabulary's embedding, both as input
and as output.

Legend: T tokens, E tokens that the encoder sees, U tokens of the decoder, S spans, N targets, D documents or width,
V vocabulary, X vocabulary and sentinels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from train.config import Config, mask_ratio
from train.data.batch import Batch
from train.model.cross_decoder import CrossDecoder
from train.model.documents import Documents, upload
from train.model.encoder import Encoder
from train.objectives.masking import KEPT, NOISE, Chance, places
from train.objectives.objective import UNSEEN, Asked, HeadSums, Objective, stack
from train.objectives.units import UnitDraws, choose
from train.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of a batch. All counts follow from lengths, so the host knows them."""

    documents: Documents
    noise_D: np.ndarray  # noise tokens of each document
    spans_D: np.ndarray  # noise spans of each document
    noise_T: torch.Tensor  # bool
    first_T: torch.Tensor  # bool: the first token of each noise span

    @property
    def targets_D(self) -> np.ndarray:
        """Targets of each document: noise, sentinels and the end; none where there is no noise."""
        counts_D: np.ndarray = (self.noise_D + self.spans_D + 1) * (self.spans_D > 0)
        return counts_D


@dataclass(frozen=True, slots=True)
class Sequences:
    """What encoder and decoder read, and what the decoder is to write. A sentinel's id is V and its number."""

    seen_E: torch.Tensor
    seen_documents: Documents
    input_U: torch.Tensor
    target_U: torch.Tensor
    target_documents: Documents


class SpanCorruption(Objective[Noise]):
    """An encoder-decoder that learns to fill gaps."""

    heads = ("denoising",)

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__(encoder, config, vocabulary, chance)
        sentinels = most_spans(config)
        self.decoder = CrossDecoder(config.model, vocabulary.size + sentinels)
        self.sentinels = nn.Parameter(torch.empty(sentinels, encoder.hidden_size))
        nn.init.normal_(self.sentinels, std=config.model.encoder.initializer_range)

    def select(self, batch: Batch, step: int | None = None) -> Noise:
        documents = Documents.bounded(batch.lengths_D, batch.cu_seqlens_D1)
        ordinary_D, settings = batch.lengths_D - 2, self.settings
        noise_D, spans_D = span_counts(ordinary_D, mask_ratio(settings, step), settings.mean_span_length)
        kept_D = (ordinary_D - noise_D) * (spans_D > 0)
        kept_ends_T = self._ends(KEPT, kept_D, spans_D, batch, documents)
        noise_ends_T = self._ends(NOISE, noise_D, spans_D, batch, documents)
        layout = _laid_out(kept_ends_T, noise_ends_T, int(spans_D.sum()), documents)
        return Noise(documents, noise_D, spans_D, *layout)

    def target_counts(self, selection: Noise) -> np.ndarray:
        return np.array([selection.targets_D.sum()])

    def asked(self, batch: Batch, selection: Noise) -> list[Asked]:
        """The decoder, which is given all that it should have written before each of its targets."""
        shown_T = batch.ids_T.masked_fill(selection.noise_T, UNSEEN)
        end = len(shown_T)
        text = sequences(torch.arange(end, device=shown_T.device), selection, end)  # of places, in the place of ids
        place_N = text.target_U[_scored(selection, text.target_documents)]
        is_noise_N = (place_N < end) & selection.noise_T[place_N.clamp(max=end - 1)]
        return [Asked(torch.where(is_noise_N, place_N, -1), shown_T)]

    def forward(self, batch: Batch, selection: Noise) -> HeadSums:
        text, vocabulary = sequences(batch.ids_T, selection, self.vocabulary.size), self.vocabulary.size
        input_XE = torch.cat([self.encoder.embedding_VD[:vocabulary], self.sentinels])
        seen = text.seen_E, text.seen_documents.positions_T, text.seen_documents
        states_ED = self.encoder(*seen, inputs_TD=F.embedding(text.seen_E, input_XE))
        embedded_UE = F.embedding(text.input_U, input_XE)
        hidden_UD = self.decoder(embedded_UE, text.target_documents, states_ED, text.seen_documents)
        places_N = _scored(selection, text.target_documents)
        return stack(self._score(hidden_UD[places_N], text.target_U[places_N]))

    def _score(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        output_XE = torch.cat([self.encoder.output_VD, self.sentinels])
        return self._scored(self.decoder.head(hidden_ND), self.decoder.bias, targets_N, output_XE)

    def _ends(
        self, stream: int, tokens_D: np.ndarray, parts_D: np.ndarray, batch: Batch, documents: Documents
    ) -> torch.Tensor:
        """True [T] at the places 1 to n of a document where a part of its n tokens ends.

        Every way to cut them into so many positive parts is equally likely (random_segmentation of T5).
        """
        positions_T, index_T, device = documents.positions_T, documents.index_T, documents.index_T.device
        tokens_T = upload(tokens_D, device)[index_T]
        inner_T = (positions_T > 0) & (positions_T < tokens_T)
        word_T = self.chance.words(stream, batch, documents)
        cuts_D = upload(np.maximum(parts_D - 1, 0), device)
        cuts = choose("token", self.settings, UnitDraws(word_T, word_T), documents, inner_T, None, cuts_D)
        return cuts.flags_T | (positions_T > 0) & (positions_T == tokens_T)


def span_counts(ordinary_D: np.ndarray, ratio: float, mean_span_length: float) -> tuple[np.ndarray, np.ndarray]:
    """(noise tokens, noise spans) of documents with so many ordinary tokens; none where there are fewer than two."""
    noise_D = np.clip(np.round(ordinary_D * ratio), 1, np.maximum(ordinary_D - 1, 1))  # half to even, as T5
    spans_D = np.maximum(np.round(noise_D / mean_span_length), 1)
    spans_D = np.minimum(spans_D, np.minimum(noise_D, ordinary_D - noise_D))
    enough_D = ordinary_D >= 2
    return (noise_D * enough_D).astype(np.int64), (spans_D * enough_D).astype(np.int64)


def most_spans(config: Config) -> int:
    """The most noise spans of a document: what the sentinels must suffice for."""
    settings, data = config.objective, config.data
    longest = max(data.sequence_length, *(change.length for change in data.sequence_length_at), 0) - 2
    ratio = max(settings.mask_ratio, *(change.ratio for change in settings.mask_ratio_at), 0.0)
    return max(1, min(round(round(longest * ratio) / settings.mean_span_length), longest // 2))


def sequences(ids_T: torch.Tensor, noise: Noise, vocabulary_size: int) -> Sequences:
    """The texts of encoder and decoder. A document without noise keeps one token of the decoder, which is no target."""
    documents, device = noise.documents, ids_T.device
    seen_lengths_D = documents.lengths_D - noise.noise_D + noise.spans_D
    written_D = noise.noise_D + noise.spans_D + 1
    spans_T = noise.first_T.long().cumsum(0)
    sentinel_T = vocabulary_size + spans_T - spans_T[documents.starts_T] - 1  # at first tokens of spans
    seen_E = places(noise.first_T | ~noise.noise_T, int(seen_lengths_D.sum()))
    seen_ids_E = torch.where(noise.first_T, sentinel_T, ids_T)[seen_E]
    last_T = documents.positions_T == documents.cu_seqlens_D1.diff().long()[documents.index_T] - 1
    copies_T = noise.noise_T.long() + noise.first_T.long() + last_T.long()
    place_T = torch.arange(len(ids_T), device=device)
    source_U = torch.repeat_interleave(place_T, copies_T, output_size=int(written_D.sum()))
    first_copy_U = torch.arange(len(source_U), device=device) == (copies_T.cumsum(0) - copies_T)[source_U]
    target_U = torch.where(noise.first_T[source_U] & first_copy_U, sentinel_T[source_U], ids_T[source_U])
    target_documents = Documents.of(written_D, device)
    begin_U = ids_T[documents.starts_T][source_U]
    input_U = torch.where(target_documents.positions_T == 0, begin_U, target_U.roll(1))
    return Sequences(seen_ids_E, Documents.of(seen_lengths_D, device), input_U, target_U, target_documents)


def _laid_out(
    kept_ends_T: torch.Tensor, noise_ends_T: torch.Tensor, spans: int, documents: Documents
) -> tuple[torch.Tensor, torch.Tensor]:
    """(noise, first tokens of noise spans), bool[T], from the ends of the parts of either kind."""
    positions_T, size = documents.positions_T, len(kept_ends_T)
    kept_S, noise_S = (positions_T[places(ends_T, spans)] for ends_T in (kept_ends_T, noise_ends_T))
    document_S = documents.index_T[places(noise_ends_T, spans)]
    follows_S = document_S == F.pad(document_S, (1, 0), value=-1)[:spans]
    before_S = torch.where(follows_S, F.pad(noise_S, (1, 0))[:spans], 0)  # noise tokens of the document so far
    begin_S = documents.cu_seqlens_D1.long()[document_S] + 1 + kept_S + before_S
    end_S = begin_S + noise_S - before_S
    step_T = torch.zeros(size, dtype=torch.int64, device=positions_T.device)
    step_T = step_T.index_fill(0, begin_S, 1).index_fill(0, end_S, -1)
    return step_T.cumsum(0) > 0, step_T > 0


def _scored(noise: Noise, documents: Documents) -> torch.Tensor:
    """The places [N] of the decoder that are targets."""
    has_D = upload(noise.spans_D > 0, documents.index_T.device)
    return places(has_D[documents.index_T], int(noise.targets_D.sum()))
