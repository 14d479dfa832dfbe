"""Choosing what is masked or dropped: tokens, whole words, or spans of words.

Legend: T tokens, D documents, N chosen tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.config import Objective as ObjectiveConfig
from train.config import Unit
from train.model.documents import Documents
from train.objectives import rng
from train.objectives.masking import places
from train.objectives.readback import Readback

# A word that would exceed the count is passed over, and the next ones that fit are taken: after the first time there is
# less room than that word is long, and every further round leaves less. So 16 rounds are exact for words of up to 16
# pieces; a longer one may leave a document a few targets short.
_ROUNDS = 16
_LAST = torch.iinfo(torch.int64).max


@dataclass(frozen=True, slots=True)
class Chosen:
    """The chosen tokens of a batch. How many they are comes to the host beside the computation."""

    flags_T: torch.Tensor  # bool
    drawn_T: torch.Tensor | None  # int64: the token whose draw decides the fate of each (its span's); None: its own
    readback: Readback  # int64[D]

    @property
    def counts_D(self) -> np.ndarray:
        """Chosen tokens of each document."""
        return self.readback.array()

    @property
    def places_N(self) -> torch.Tensor:
        """Ascending places of the chosen tokens."""
        return places(self.flags_T, int(self.counts_D.sum()))


@dataclass(frozen=True, slots=True)
class UnitDraws:
    """What is random in a choice: words of 63 bits for each token, two streams."""

    order_T: torch.Tensor
    length_T: torch.Tensor  # looked at where units are spans


def choose(
    unit: Unit,
    settings: ObjectiveConfig,
    draws: UnitDraws,
    documents: Documents,
    candidates_T: torch.Tensor,
    starts_T: torch.Tensor | None,
    most_D: torch.Tensor,
) -> Chosen:
    """At most `most_D` candidates of each document, in whole units, and exactly so many where units are tokens.

    `starts_T` is true where words start (not needed where units are tokens). Every order of the units is equally
    likely; they are taken in that order, and what would exceed the count is passed over
    (create_pretraining_data.py of BERT).
    """
    if unit == "token" or starts_T is None:
        flags_T = _tokens(draws.order_T, documents, candidates_T, most_D)
        return Chosen(flags_T, None, Readback(most_D))
    first_T, length_T = _words(starts_T, candidates_T)
    order_T, drawn_T = draws.order_T, None
    if unit == "span":
        order_T, drawn_T = _spans(settings, draws, first_T, length_T, documents)
    flags_T = _whole_words(order_T, length_T, documents, most_D)[first_T] & candidates_T
    return Chosen(flags_T, drawn_T, Readback(documents.sums(flags_T)))


def _tokens(
    order_T: torch.Tensor, documents: Documents, candidates_T: torch.Tensor, counts_D: torch.Tensor
) -> torch.Tensor:
    """The `counts_D` candidates of each document with the smallest random words: every subset is equally likely."""
    sorted_T = _within_documents(torch.where(candidates_T, order_T, _LAST), documents)
    first_T = documents.positions_T < counts_D[documents.index_T]  # sorting left the documents in place
    return torch.zeros_like(candidates_T).index_copy(0, sorted_T, first_T)


def _within_documents(key_T: torch.Tensor, documents: Documents) -> torch.Tensor:
    """Places sorted by key within each document; the documents stay where they are."""
    by_key_T = torch.argsort(key_T, stable=True)
    return by_key_T[torch.argsort(documents.index_T[by_key_T], stable=True)]


def _words(starts_T: torch.Tensor, candidates_T: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The first token of each token's word, and at that token the number of the word's candidates (elsewhere 0)."""
    place_T = torch.arange(len(starts_T), device=starts_T.device)
    first_T = torch.where(starts_T, place_T, 0).cummax(0).values
    return first_T, torch.zeros_like(first_T).index_add(0, first_T, candidates_T.long())


def _whole_words(
    order_T: torch.Tensor, length_T: torch.Tensor, documents: Documents, most_D: torch.Tensor
) -> torch.Tensor:
    """True at the first tokens of the words that are taken in ascending order as long as they fit."""
    sorted_T = _within_documents(torch.where(length_T > 0, order_T, _LAST), documents)
    size_T, index_T = length_T[sorted_T], documents.index_T  # sorting left the documents in place
    starts_D = documents.cu_seqlens_D1[:-1].long()
    open_T, taken_T, room_D = size_T > 0, torch.zeros_like(size_T, dtype=torch.bool), most_D
    for _ in range(_ROUNDS):
        fits_T = open_T & (size_T <= room_D[index_T])
        size_of_fits_T = torch.where(fits_T, size_T, 0)
        before_T1 = torch.nn.functional.pad(size_of_fits_T.cumsum(0), (1, 0))
        up_to_T = before_T1[1:] - before_T1[starts_D][index_T]
        now_T = fits_T & (up_to_T <= room_D[index_T])
        room_D = room_D.index_add(0, index_T, -torch.where(now_T, size_T, 0))
        taken_T, open_T = taken_T | now_T, open_T & ~now_T
    return torch.zeros_like(taken_T).index_copy(0, sorted_T, taken_T)


def _spans(
    settings: ObjectiveConfig,
    draws: UnitDraws,
    first_T: torch.Tensor,
    length_T: torch.Tensor,
    documents: Documents,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Words in the order in which spans cover them, and for each token the first token of the span that does.

    Joshi et al. 2020, section 3.1: a span begins at any word, its length in words is geometric and clipped. Spans come
    in random order; where several cover a word, the first one counts. Words of a span stand in their own order.
    """
    size = len(first_T)
    firsts_W = places(length_T > 0, size)  # the words with candidates; behind them, what is never used
    is_word_W = (length_T > 0)[firsts_W]
    when_W = torch.where(is_word_W, draws.order_T[firsts_W], _LAST)
    words_W = span_lengths(draws.length_T[firsts_W], settings.span_probability, settings.max_span_words)
    index_W = documents.index_T[firsts_W]
    own_W = torch.arange(size, device=first_T.device)
    best_W, who_W = when_W, own_W
    for back in range(1, min(settings.max_span_words, size)):
        reaches_W = (words_W[:-back] > back) & (index_W[:-back] == index_W[back:])
        earlier_W = torch.where(reaches_W & is_word_W[back:], when_W[:-back], _LAST)
        better_W = earlier_W < best_W[back:]
        best_W = torch.cat([best_W[:back], torch.where(better_W, earlier_W, best_W[back:])])
        who_W = torch.cat([who_W[:back], torch.where(better_W, own_W[:-back], who_W[back:])])
    order_T = torch.full_like(first_T, _LAST).index_copy(0, firsts_W, best_W)
    drawn_T = torch.zeros_like(first_T).index_copy(0, firsts_W, firsts_W[who_W])
    return order_T, drawn_T[first_T]


def span_lengths(word_W: torch.Tensor, probability: float, longest: int) -> torch.Tensor:
    """Lengths from 1 to `longest`, geometric and renormalised: 3.8 on average for 0.2 and 10, as the paper has it."""
    beyond = (1 - probability) ** longest
    lengths_W = torch.ones_like(word_W)
    for length in range(1, longest):
        lengths_W += rng.below(((1 - probability) ** length - beyond) / (1 - beyond), word_W)
    return lengths_W
