"""Random draws for the tokens of a batch, how many are chosen, and what becomes of them.

Legend: T tokens, D documents, N chosen tokens, V ordinary ids.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from train.config import Objective as ObjectiveConfig
from train.data.batch import Batch
from train.model.documents import Documents
from train.objectives import rng

# Streams: each use of randomness has its own.
SELECT, FATE, REPLACEMENT, DROP, SELECT_LENGTH, DROP_LENGTH, VISIBLE, NOISE, KEPT = range(9)


@dataclass(frozen=True, slots=True)
class Chance:
    """The draws of a run: a pure function of its seed and of a token's epoch, row and place in the row."""

    seed: int

    def words(self, stream: int, batch: Batch, documents: Documents) -> torch.Tensor:
        """63 random bits for each token, from its row's id and its place in the row."""
        row_T = batch.row_ids_D[documents.index_T]
        offset_T = batch.row_offsets_D[documents.index_T] + documents.positions_T
        return rng.hash_words(self.seed, batch.epoch, stream, row_T, offset_T)


def exact_counts(ordinary_D: torch.Tensor, ratio: float) -> torch.Tensor:
    """How many of each document's ordinary tokens are chosen: the rounded share, at least one where there is any.

    Devlin et al. 2018, create_pretraining_data.py: max(1, round(ratio * length)); specials are no candidates.
    """
    counts_D = (ordinary_D.double() * ratio).round().long()  # half to even, in fp64: equal on every device
    return counts_D.clamp(min=1).minimum(ordinary_D)


def places(flags_T: torch.Tensor, count: int) -> torch.Tensor:
    """The ascending places [count] where `flags_T` is true; the host knows how many, so nothing waits."""
    return torch.argsort(flags_T.logical_not().to(torch.uint8), stable=True)[:count]


def ordinary(documents: Documents) -> torch.Tensor:
    """True at tokens that are not the [CLS] and [SEP] which begin and end every document."""
    positions_T = documents.positions_T
    last_T = documents.cu_seqlens_D1.diff().long()[documents.index_T] - 1
    return (positions_T > 0) & (positions_T < last_T)


def corrupt(
    ids_T: torch.Tensor,
    fate_T: torch.Tensor,
    replacement_T: torch.Tensor,
    settings: ObjectiveConfig,
    mask_id: int,
    ordinary_ids_V: torch.Tensor,
) -> torch.Tensor:
    """What the encoder sees at targets: [MASK], a random ordinary id or the token itself (80/10/10 in BERT).

    `fate_T` and `replacement_T` are independent random words.
    """
    masked_T = rng.below(settings.mask_token_share, fate_T)
    changed_T = rng.below(settings.mask_token_share + settings.random_token_share, fate_T)
    random_T = ordinary_ids_V[rng.integers(len(ordinary_ids_V), replacement_T)]
    return torch.where(masked_T, mask_id, torch.where(changed_T, random_T, ids_T))
