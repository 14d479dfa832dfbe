"""The pretraining objectives by name: each is one file and one line here."""

from __future__ import annotations

from typing import Any

from train.config import Config
from train.model.encoder import build_encoder
from train.objectives.dupmae import DupMae
from train.objectives.joint import Joint
from train.objectives.latent_mae import LatentMaskedAutoencoder
from train.objectives.mae import MaskedAutoencoder
from train.objectives.masking import Chance
from train.objectives.mlm import MaskedLanguageModel
from train.objectives.objective import Objective
from train.objectives.retromae import RetroMae
from train.objectives.span_corruption import SpanCorruption
from train.vocabulary import Vocabulary

REGISTRY: dict[str, type[Objective[Any]]] = {
    "mlm": MaskedLanguageModel,
    "mae": MaskedAutoencoder,
    "latent-mae": LatentMaskedAutoencoder,
    "joint": Joint,
    "retromae": RetroMae,
    "dupmae": DupMae,
    "span-corruption": SpanCorruption,
}


def build_objective(config: Config, vocabulary: Vocabulary) -> Objective[Any]:
    """The model of a run with its losses: encoder, heads, and a decoder where the objective has one."""
    encoder = build_encoder(config.model, vocabulary)
    return REGISTRY[config.objective.name](encoder, config, vocabulary, Chance(config.run.seed))
