"""The pretraining objectives by name: each is one file and one line here."""

from __future__ import annotations

from train.config import Config
from train.model.encoder import build_encoder
from train.objectives.joint import Joint
from train.objectives.mae import MaskedAutoencoder
from train.objectives.masking import Chance
from train.objectives.mlm import MaskedLanguageModel
from train.objectives.objective import Objective
from train.vocabulary import Vocabulary

REGISTRY: dict[str, type[Objective]] = {
    "mlm": MaskedLanguageModel,
    "mae": MaskedAutoencoder,
    "joint": Joint,
}


def build_objective(config: Config, vocabulary: Vocabulary) -> Objective:
    """The model of a run with its losses: encoder, heads, and a decoder where the objective has one."""
    encoder = build_encoder(config.model, vocabulary)
    return REGISTRY[config.objective.name](encoder, config, vocabulary, Chance(config.run.seed))
