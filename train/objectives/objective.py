"""What every objective is: a module that chooses its targets in a batch and sums its heads' losses there.

Legend: T tokens, N targets, H heads, D documents or width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import nn

from train.config import Config, Unit, mask_ratio
from train.data.batch import Batch
from train.model.documents import Documents
from train.model.encoder import Encoder
from train.objectives.cross_entropy import cross_entropy, most_likely
from train.objectives.masking import (
    DROP,
    DROP_LENGTH,
    FATE,
    REPLACEMENT,
    SELECT,
    SELECT_LENGTH,
    Chance,
    corrupt,
    exact_counts,
    ordinary,
)
from train.objectives.units import Chosen, UnitDraws, choose
from train.vocabulary import Vocabulary

# Sums over the targets of one micro-batch; dividing by the global number of targets is the trainer's.
#   losses_H   cross-entropy in nats, differentiable
#   hits_H2    targets guessed right by the head, and by always guessing the most frequent token
# A plain tuple: ZeRO-3 looks for tensors in tuples and rebuilds what it finds.
HeadSums = tuple[torch.Tensor, torch.Tensor]
Selection = TypeVar("Selection")
UNSEEN = -1  # in the place of an id


@dataclass(frozen=True, slots=True)
class Asked:
    """What one head is asked in a batch."""

    places_N: torch.Tensor  # of its targets, in the order in which `forward` scores them; -1: no token of the text
    shown_T: torch.Tensor  # the ids that it predicts them from; UNSEEN where it gets nothing of a token


class Objective(nn.Module, Generic[Selection]):
    """An encoder with the heads and the decoder that an objective trains.

    First `select` draws on the device what is masked; how many targets that gives comes to the host beside the
    computation (`target_counts`). Then `forward` has shapes that the host knows.
    """

    heads: tuple[str, ...]

    def __init__(self, encoder: Encoder, config: Config, vocabulary: Vocabulary, chance: Chance) -> None:
        super().__init__()
        self.encoder = encoder
        self.settings = config.objective
        self.vocabulary = vocabulary
        self.chance = chance
        self.register_buffer("ordinary_ids_V", torch.from_numpy(vocabulary.ordinary_ids), persistent=False)
        self.ordinary_ids_V: torch.Tensor

    def weights(self) -> tuple[float, ...]:
        """How much each head's mean loss counts in the total."""
        return (1.0,) * len(self.heads)

    def select(self, batch: Batch, step: int | None = None) -> Selection:
        """What is masked in a batch on the device, at an optimizer step; None: as in validation."""
        raise NotImplementedError

    def target_counts(self, selection: Selection) -> np.ndarray:
        """Targets of each head [H] in the batch of a selection. Waits for the device: ask as late as you can."""
        raise NotImplementedError

    def forward(self, batch: Batch, selection: Selection) -> HeadSums:
        raise NotImplementedError

    def asked(self, batch: Batch, selection: Selection) -> list[Asked]:
        """What the heads that predict tokens are asked, in the order of `heads`; others come last and are left out."""
        raise NotImplementedError

    @torch.no_grad()
    def predictions(self, batch: Batch, selection: Selection) -> tuple[torch.Tensor, ...]:
        """The most likely id at each target, [N] for each head of `asked`: `forward`, with another question at the
        place where it scores."""
        found: list[torch.Tensor] = []

        def guess(
            hidden_ND: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, output_VD: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            found.append(most_likely(hidden_ND, output_VD, bias_V))
            return hidden_ND.new_zeros(()), targets_N.new_zeros(2)

        self._scored = guess  # type: ignore[method-assign]
        try:
            type(self).forward(self, batch, selection)  # the engine calls this method by the name `forward`
        finally:
            del self._scored  # the class has the other
        return tuple(found)

    def vectors(self, ids_T: torch.Tensor, documents: Documents) -> torch.Tensor:
        """What a user of the encoder takes for the vector of a document, fp32 [D, 2, W] with W the width: the last
        state of [CLS], and the mean of the last states of all its tokens. Nothing is masked."""
        hidden_TW = self.encoder(ids_T, documents.positions_T, documents).float()
        parts = hidden_TW.split(documents.lengths_D.tolist())  # one by one: sums by scattering have no order on a GPU
        return torch.stack([torch.stack([part[0], part.mean(0)]) for part in parts])

    def masked(self, batch: Batch, documents: Documents, among_T: torch.Tensor, step: int | None) -> Chosen:
        """The targets of masked language modelling among some ordinary tokens."""
        settings, streams = self.settings, (SELECT, SELECT_LENGTH)
        return self._choose(settings.mask_unit, mask_ratio(settings, step), streams, batch, documents, among_T)

    def dropped(self, batch: Batch, documents: Documents) -> Chosen:
        """The tokens that the encoder does not see, or whose states it loses."""
        settings, streams = self.settings, (DROP, DROP_LENGTH)
        return self._choose(settings.drop_unit, settings.drop_ratio, streams, batch, documents, ordinary(documents))

    def corrupted(self, batch: Batch, documents: Documents, chosen: Chosen) -> torch.Tensor:
        """The ids [T] with which masked language modelling hides its targets."""
        fate_T, replacement_T = (self.chance.words(stream, batch, documents) for stream in (FATE, REPLACEMENT))
        if chosen.drawn_T is not None:
            fate_T = fate_T[chosen.drawn_T]
        mask_id = self.vocabulary.special_ids["mask"]
        seen_T = corrupt(batch.ids_T, fate_T, replacement_T, self.settings, mask_id, self.ordinary_ids_V)
        return torch.where(chosen.flags_T, seen_T, batch.ids_T)

    def mlm_score(self, hidden_ND: torch.Tensor, targets_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss and hits of the encoder's own head at states of the targets."""
        return self.score(self.encoder.head(hidden_ND), self.encoder.output_bias_V, targets_N)

    def score(
        self, hidden_ND: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(loss, [own hits, hits of the most frequent token]) of one head, projected by the tied embedding."""
        return self._scored(hidden_ND, bias_V, targets_N, self.encoder.output_VD)

    def _scored(
        self, hidden_ND: torch.Tensor, bias_V: torch.Tensor | None, targets_N: torch.Tensor, output_VD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, hits = cross_entropy(hidden_ND, output_VD, bias_V, targets_N)
        return loss, torch.stack([hits, (targets_N == self.vocabulary.most_frequent_id).sum()])

    def _choose(
        self,
        unit: Unit,
        ratio: float,
        streams: tuple[int, int],
        batch: Batch,
        documents: Documents,
        among_T: torch.Tensor,
    ) -> Chosen:
        order_T = self.chance.words(streams[0], batch, documents)
        length_T = self.chance.words(streams[1], batch, documents) if unit == "span" else order_T
        draws = UnitDraws(order_T, length_T)
        starts_T = None if unit == "token" else batch.word_starts_T
        most_D = exact_counts(documents.sums(among_T), ratio)
        return choose(unit, self.settings, draws, documents, among_T, starts_T, most_D)


def stack(*heads: tuple[torch.Tensor, torch.Tensor]) -> HeadSums:
    """The sums of several heads in one record."""
    return torch.stack([loss for loss, _ in heads]), torch.stack([hits for _, hits in heads])
