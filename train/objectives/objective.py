"""What every objective is: a module from a batch to the loss sums of its heads.

Legend: H heads, N targets, D documents or hidden size, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from train.config import Config
from train.data.batch import Batch
from train.model.documents import Documents
from train.model.encoder import Encoder
from train.objectives.masking import FATE, REPLACEMENT, Chance, corrupt
from train.vocabulary import Vocabulary

# Sums over the targets of one micro-batch; dividing by the global number of targets is the trainer's.
#   losses_H   cross-entropy in nats, differentiable
#   hits_H2    targets guessed right by the head, and by always guessing the most frequent token
# A plain tuple: ZeRO-3 looks for tensors in tuples and rebuilds what it finds.
HeadSums = tuple[torch.Tensor, torch.Tensor]


class Objective(nn.Module):
    """An encoder with the heads and the decoder that an objective trains."""

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

    def target_counts(self, lengths_D: np.ndarray) -> np.ndarray:
        """Targets of each head [H] in a batch of documents, from their lengths alone."""
        raise NotImplementedError

    def forward(self, batch: Batch) -> HeadSums:
        raise NotImplementedError

    def corrupted(self, batch: Batch, documents: Documents, targets_N: torch.Tensor) -> torch.Tensor:
        """The ids [N] the encoder sees in place of the targets of masked language modelling."""
        fate_N = self.chance.words(FATE, batch, documents)[targets_N]
        replacement_N = self.chance.words(REPLACEMENT, batch, documents)[targets_N]
        mask_id = self.vocabulary.special_ids["mask"]
        return corrupt(batch.ids_T[targets_N], fate_N, replacement_N, self.settings, mask_id, self.ordinary_ids_V)


def score(logits_NV: torch.Tensor, targets_N: torch.Tensor, most_frequent_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(sum of the cross-entropy in fp32, [own hits, hits of the most frequent token]) of one head."""
    logits_NV = logits_NV.float()
    loss = F.cross_entropy(logits_NV, targets_N, reduction="sum")
    own = (logits_NV.detach().argmax(-1) == targets_N).sum()
    return loss, torch.stack([own, (targets_N == most_frequent_id).sum()])


def stack(*heads: tuple[torch.Tensor, torch.Tensor]) -> HeadSums:
    """The sums of several heads in one record."""
    return torch.stack([loss for loss, _ in heads]), torch.stack([hits for _, hits in heads])
