"""The head that predicts a masked run from the two states beside it (Joshi et al. 2020, "SpanBERT", section 3.2).

y_i = f(h_before, h_after, p_i): f is two layers with GELU and layer norm, p_i a learned vector for the place of target
i in its run, counted from 1. Runs that touch are one run.

Legend: T tokens, N targets, D width, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from train.config import Encoder as EncoderConfig

_PLACES = 20  # in a run; what lies farther shares the last vector


class BoundaryHead(nn.Module):
    """States that the tied embedding and `bias` project to the vocabulary."""

    def __init__(self, encoder: EncoderConfig, vocabulary_size: int) -> None:
        super().__init__()
        width, epsilon = encoder.hidden_size, encoder.layer_norm_eps
        self.place = nn.Embedding(_PLACES, width)
        self.first, self.first_norm = nn.Linear(3 * width, width), nn.LayerNorm(width, eps=epsilon)
        self.second, self.second_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        for module in (self.place, self.first, self.second):
            nn.init.normal_(module.weight, std=encoder.initializer_range)
        for linear in (self.first, self.second):
            nn.init.zeros_(linear.bias)

    def forward(self, hidden_TD: torch.Tensor, targets_T: torch.Tensor, places_N: torch.Tensor) -> torch.Tensor:
        """States [N, D] at the targets, from `targets_T` (bool) and the places where it is true.

        [CLS] and [SEP] are no targets, so what stands beside a run is of the same document.
        """
        before_N, after_N = beside(targets_T, places_N)
        place_ND = self.place((places_N - before_N - 1).clamp(max=_PLACES - 1))
        all_ND3 = torch.cat([hidden_TD[before_N], hidden_TD[after_N], place_ND], dim=-1)
        inner_ND = self.first_norm(F.gelu(self.first(all_ND3)))
        return self.second_norm(F.gelu(self.second(inner_ND)))  # type: ignore[no-any-return]


def beside(targets_T: torch.Tensor, places_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The nearest tokens before and after each target that are no targets."""
    size = len(targets_T)
    place_T = torch.arange(size, device=targets_T.device)
    before_T = torch.where(targets_T, 0, place_T).cummax(0).values
    after_T = torch.where(targets_T, size - 1, place_T).flip(0).cummin(0).values.flip(0)
    return before_T[places_N], after_T[places_N]
