"""Which tokens are chosen, and what becomes of them.

Legend: T tokens, D documents, N chosen tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from train.config import Objective as ObjectiveConfig
from train.data.batch import Batch
from train.model.documents import Documents, upload
from train.objectives import rng

SELECT, FATE, REPLACEMENT, DROP = range(4)  # streams: each use of randomness has its own


@dataclass(frozen=True, slots=True)
class Chance:
    """The draws of a run: a pure function of its seed and of a token's epoch, row and place in the row."""

    seed: int

    def words(self, stream: int, batch: Batch, documents: Documents) -> torch.Tensor:
        """63 random bits for each token, from its row's id and its place in the row."""
        row_T = batch.row_ids_D[documents.index_T]
        offset_T = batch.row_offsets_D[documents.index_T] + documents.positions_T
        return rng.hash_words(self.seed, batch.epoch, stream, row_T, offset_T)


def exact_counts(ordinary_D: np.ndarray, ratio: float) -> np.ndarray:
    """How many of each document's ordinary tokens are chosen: the rounded share, at least one where there is any.

    Devlin et al. 2018, create_pretraining_data.py: max(1, round(ratio * length)); specials are no candidates.
    """
    counts_D = np.rint(ordinary_D * ratio).astype(np.int64)
    clipped_D: np.ndarray = np.minimum(np.maximum(counts_D, 1), ordinary_D)
    return clipped_D


def choose(
    words_T: torch.Tensor, candidates_T: torch.Tensor, documents: Documents, counts_D: np.ndarray
) -> torch.Tensor:
    """Ascending places [N] of `counts_D` candidates of each document, the ones with the smallest random words.

    Every subset of a document's candidates is equally likely. The counts are known on the host, so the shape of the
    answer is too, and nothing waits for the device.
    """
    last = torch.iinfo(torch.int64).max
    by_word_T = torch.argsort(torch.where(candidates_T, words_T, last), stable=True)
    order_T = by_word_T[torch.argsort(documents.index_T[by_word_T], stable=True)]
    starts_D = np.cumsum(documents.lengths_D) - documents.lengths_D
    within_N = np.arange(counts_D.sum()) - np.repeat(np.cumsum(counts_D) - counts_D, counts_D)
    first_N = upload(np.repeat(starts_D, counts_D) + within_N, words_T.device)
    return order_T[first_N].sort().values


def others(chosen_N: torch.Tensor, tokens: int) -> torch.Tensor:
    """The ascending places that were not chosen, [tokens - N]."""
    flags_T = torch.zeros(tokens, dtype=torch.int64, device=chosen_N.device)
    flags_T[chosen_N] = 1
    return torch.argsort(flags_T, stable=True)[: tokens - len(chosen_N)]


def ordinary(documents: Documents) -> torch.Tensor:
    """True at tokens that are not the [CLS] and [SEP] which begin and end every document."""
    positions_T = documents.positions_T
    last_T = documents.cu_seqlens_D1.diff().long()[documents.index_T] - 1
    return (positions_T > 0) & (positions_T < last_T)


def corrupt(
    ids_N: torch.Tensor,
    fate_N: torch.Tensor,
    replacement_N: torch.Tensor,
    settings: ObjectiveConfig,
    mask_id: int,
    ordinary_ids_V: torch.Tensor,
) -> torch.Tensor:
    """What the encoder sees at the targets: [MASK], a random ordinary id or the token itself (80/10/10 in BERT).

    `fate_N` and `replacement_N` are independent random words.
    """
    masked_N = rng.below(settings.mask_token_share, fate_N)
    changed_N = rng.below(settings.mask_token_share + settings.random_token_share, fate_N)
    random_N = ordinary_ids_V[rng.integers(len(ordinary_ids_V), replacement_N)]
    return torch.where(masked_N, mask_id, torch.where(changed_N, random_N, ids_N))
