"""The encoder with its masked-language-model head: a transformers model, driven padding-free.

Legend: T tokens, N targets, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from train.config import Model as ModelConfig
from train.errors import UserError
from train.model.attention import NAME
from train.model.documents import Documents
from train.model.families import FAMILIES, transformers_settings
from train.model.layers import prepare_layers
from train.vocabulary import Vocabulary


class Encoder(nn.Module):
    """Wraps a transformers `...ForMaskedLM`, so that what is trained is what is exported.

    `vocabulary_size` is the number of tokens; the embedding may have further rows, which are never predicted.
    """

    def __init__(self, masked_lm: PreTrainedModel, vocabulary_size: int) -> None:
        super().__init__()
        self.masked_lm = masked_lm
        config = masked_lm.config
        counted = FAMILIES[config.model_type].counts_from_padding
        self._first_position = config.pad_token_id + 1 if counted else 0
        self._tokens = None if config.vocab_size == vocabulary_size else vocabulary_size

    @property
    def hidden_size(self) -> int:
        return int(self.masked_lm.config.hidden_size)

    @property
    def base_name(self) -> str:
        """What transformers calls the part of the model that is below its head."""
        return str(self.masked_lm.base_model_prefix)

    @property
    def embedding_VD(self) -> torch.Tensor:
        """The token embedding, as a rule tied to the vocabulary projection; its spare rows included."""
        return self.masked_lm.get_input_embeddings().weight  # type: ignore[no-any-return]

    def forward(
        self,
        ids_T: torch.Tensor,
        positions_T: torch.Tensor,
        documents: Documents,
        inputs_TD: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [T, D] of the last layer; each document sees itself alone.

        `inputs_TD` are token embeddings in the place of those of the ids.
        """
        tokens = {"input_ids": ids_T[None]} if inputs_TD is None else {"inputs_embeds": inputs_TD[None]}
        positions_1T = positions_T[None] + self._first_position if self._first_position else positions_T[None]
        output = self.masked_lm.base_model(**tokens, position_ids=positions_1T, documents=documents, return_dict=True)
        return output.last_hidden_state[0]  # type: ignore[no-any-return]

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """States [N, D] that the tied embedding projects to the vocabulary: the head without its last product."""
        return _HEADS[self.masked_lm.config.model_type](self.masked_lm, hidden_ND)

    @property
    def output_VD(self) -> torch.Tensor:
        """The weight of the head's last product, as a rule the token embedding."""
        weight: torch.Tensor = self.masked_lm.get_output_embeddings().weight
        return weight if self._tokens is None else weight[: self._tokens]

    @property
    def output_bias_V(self) -> torch.Tensor | None:
        """The bias of the head's last product."""
        bias: torch.Tensor | None = self.masked_lm.get_output_embeddings().bias
        return bias if bias is None or self._tokens is None else bias[: self._tokens]

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits [N, V] of the masked-language-model head, for the targets only."""
        return F.linear(self.head(hidden_ND), self.output_VD, self.output_bias_V)


def _roberta_head(masked_lm: PreTrainedModel, hidden_ND: torch.Tensor) -> torch.Tensor:
    head = masked_lm.lm_head
    return head.layer_norm(F.gelu(head.dense(hidden_ND)))  # type: ignore[no-any-return]


_HEADS: dict[str, Callable[[PreTrainedModel, torch.Tensor], torch.Tensor]] = {
    "bert": lambda masked_lm, hidden_ND: masked_lm.cls.predictions.transform(hidden_ND),
    "roberta": _roberta_head,
    "xlm-roberta": _roberta_head,
    "modernbert": lambda masked_lm, hidden_ND: masked_lm.head(hidden_ND),
    "eurobert": lambda _, hidden_ND: hidden_ND,  # the last product is all it has
}


def build_encoder(model: ModelConfig, vocabulary: Vocabulary) -> Encoder:
    """A freshly initialised encoder; the caller seeds torch's generator."""
    config = encoder_config(model, vocabulary.size, vocabulary.special_ids)
    config.use_cache = False  # of a decoder's past keys; transformers warns of it beside checkpointing
    masked_lm = AutoModelForMaskedLM.from_config(config, attn_implementation=NAME, dtype=torch.float32)
    prepare_layers([layer for layer in masked_lm.modules() if isinstance(layer, GradientCheckpointingLayer)], model)
    return Encoder(masked_lm, vocabulary.size)


def encoder_config(model: ModelConfig, vocabulary_size: int, special_ids: Mapping[str, int]) -> PretrainedConfig:
    """The transformers configuration of the encoder; the vocabulary's size and ids come from the data.

    Raises UserError where `extra` gives the embedding fewer rows than tokens, or a value that transformers refuses.
    """
    settings = transformers_settings(model.encoder.model_dump(), vocabulary_size, special_ids)
    if settings["vocab_size"] < vocabulary_size:
        raise UserError(
            f"model.encoder.extra.vocab_size {settings['vocab_size']} is below the {vocabulary_size} tokens of the "
            "data set's tokenizer: raise it, or build the data set with the tokenizer of the model"
        )
    try:
        return CONFIG_MAPPING[model.encoder.model_type](**settings)
    except Exception as error:  # of several classes, all of them on values in `extra`
        reason = " ".join(str(error).split())
        raise UserError(f"model.encoder: transformers refuses these settings ({reason})") from error
