"""The encoder with its masked-language-model head: a transformers model, driven padding-free.

Legend: T tokens, N targets, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel

from train.config import Model as ModelConfig
from train.model.attention import NAME
from train.model.documents import Documents
from train.vocabulary import Vocabulary


class Encoder(nn.Module):
    """Wraps a transformers `...ForMaskedLM`, so that what is trained is what is exported."""

    def __init__(self, masked_lm: PreTrainedModel) -> None:
        super().__init__()
        self.masked_lm = masked_lm

    @property
    def hidden_size(self) -> int:
        return int(self.masked_lm.config.hidden_size)

    @property
    def embedding_VD(self) -> torch.Tensor:
        """The token embedding, tied to every vocabulary projection."""
        return self.masked_lm.get_input_embeddings().weight  # type: ignore[no-any-return]

    def forward(self, ids_T: torch.Tensor, positions_T: torch.Tensor, documents: Documents) -> torch.Tensor:
        """Hidden states [T, D] of the last layer; each document sees itself alone."""
        output = self.masked_lm.base_model(
            input_ids=ids_T[None], position_ids=positions_T[None], documents=documents, return_dict=True
        )
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits [N, V] of the masked-language-model head, for the targets only."""
        return self.masked_lm.cls(hidden_ND)  # type: ignore[no-any-return]


def build_encoder(model: ModelConfig, vocabulary: Vocabulary) -> Encoder:
    """A freshly initialised encoder; the caller seeds torch's generator."""
    config = encoder_config(model, vocabulary.size, vocabulary.special_ids["pad"])
    config.use_cache = False  # of a decoder's past keys; transformers warns of it beside checkpointing
    masked_lm = AutoModelForMaskedLM.from_config(config, attn_implementation=NAME, dtype=torch.float32)
    if model.gradient_checkpointing:
        # The reentrant kind fails under ZeRO where one embedding serves two losses.
        _enable_checkpointing(masked_lm)({"use_reentrant": False})
    return Encoder(masked_lm)


def _enable_checkpointing(masked_lm: PreTrainedModel) -> Callable[[dict[str, bool]], None]:
    """Newer transformers have another name for it, and the old one warns there."""
    name = "activation_checkpointing_enable"
    method: Callable[[dict[str, bool]], None] = getattr(
        masked_lm, name if hasattr(masked_lm, name) else "gradient_checkpointing_enable"
    )
    return method


def encoder_config(model: ModelConfig, vocabulary_size: int, pad_id: int) -> PretrainedConfig:
    """The transformers configuration of the encoder; the vocabulary's size and ids come from the data."""
    settings = model.encoder.model_dump(exclude={"model_type"})
    return AutoConfig.for_model(
        model.encoder.model_type,
        **settings,
        vocab_size=vocabulary_size,
        pad_token_id=pad_id,
        attention_probs_dropout_prob=0.0,
    )
