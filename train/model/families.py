"""Owns what the architectures differ in: how the fields of the configuration are called in transformers, and defaults.

Light on purpose: the configuration is read without torch, so transformers is imported where it is needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from train.errors import UserError

# transformers' names of each field of the encoder. Where there are several, the field sets all of them, and `extra` may
# set the later ones apart. Fields that are not named here have one name everywhere.
_Names = dict[str, tuple[str, ...]]
_COMMON: _Names = {
    name: (name,)
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "initializer_range")
}
_BERT: _Names = _COMMON | {
    name: (name,) for name in ("max_position_embeddings", "hidden_act", "hidden_dropout_prob", "layer_norm_eps")
}
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")
# Settings that follow from the data set, that would make the model another kind of model, or that only mark it.
_NOT_SETTABLE = {"use_cache", "is_decoder", "add_cross_attention", "pretraining_tp", "deterministic_flash_attn"}


@dataclass(frozen=True)
class Family:
    """One architecture of transformers."""

    names: _Names = field(default_factory=lambda: _BERT)
    defaults: dict[str, Any] = field(default_factory=dict)  # of our fields, where they are not those of BERT
    settings: dict[str, Any] = field(default_factory=dict)  # of transformers, where its defaults are not the model's
    token_ids: dict[str, str] = field(default_factory=dict)  # in the configuration, beside that of padding
    counts_from_padding: bool = False  # position 0 is the row behind the id of padding
    legacy: dict[str, str] = field(default_factory=dict)  # settings that transformers keeps under another name


_ENDS = {"bos_token_id": "cls", "eos_token_id": "sep"}
# RoBERTa's configuration files say 1 and 1e-5 (fairseq's), the defaults of transformers' class 2 and 1e-12 (BERT's).
_ROBERTA = Family(
    defaults={"layer_norm_eps": 1e-5}, settings={"type_vocab_size": 1}, token_ids=_ENDS, counts_from_padding=True
)
FAMILIES = {
    "bert": Family(),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
    "modernbert": Family(
        names=_COMMON
        | {
            "max_position_embeddings": ("max_position_embeddings",),
            "hidden_act": ("hidden_activation", "classifier_activation"),
            "hidden_dropout_prob": ("embedding_dropout", "mlp_dropout"),
            "layer_norm_eps": ("norm_eps",),
        },
        defaults={
            "num_hidden_layers": 22,
            "intermediate_size": 1152,
            "max_position_embeddings": 8192,
            "hidden_dropout_prob": 0.0,
            "layer_norm_eps": 1e-5,
        },
        token_ids=_ENDS | {"cls_token_id": "cls", "sep_token_id": "sep"},
        legacy={
            "global_attn_every_n_layers": "layer_types",
            "global_rope_theta": "rope_parameters",
            "local_rope_theta": "rope_parameters",
        },
    ),
    "eurobert": Family(
        names=_COMMON
        | {
            "max_position_embeddings": ("max_position_embeddings",),
            "hidden_act": ("hidden_act",),
            "hidden_dropout_prob": (),  # the architecture has none
            "layer_norm_eps": ("rms_norm_eps",),
        },
        defaults={
            "max_position_embeddings": 8192,
            "hidden_act": "silu",
            "hidden_dropout_prob": 0.0,
            "layer_norm_eps": 1e-5,
        },
        token_ids=_ENDS | {"mask_token_id": "mask"},
        legacy={"rope_theta": "rope_parameters"},
    ),
}


def transformers_settings(
    encoder: Mapping[str, Any], vocabulary_size: int, special_ids: Mapping[str, int]
) -> dict[str, Any]:
    """What the configuration class of transformers is called with, from the fields of the encoder's section."""
    family, extra = FAMILIES[encoder["model_type"]], encoder["extra"]
    settings = {name: encoder[ours] for ours, names in family.names.items() for name in names}
    settings |= {"vocab_size": vocabulary_size, "pad_token_id": special_ids["pad"]}
    settings |= {name: special_ids[token] for name, token in family.token_ids.items()}
    settings |= family.settings | extra
    if family.counts_from_padding:
        settings["max_position_embeddings"] += special_ids["pad"] + 1
    return settings | {_dropout_name(encoder["model_type"]): 0.0}


def attention_dropout(model_type: str, extra: Mapping[str, Any]) -> float:
    """The attention dropout that `extra` asks for."""
    return float(extra.get(_dropout_name(model_type), 0.0))


def _dropout_name(model_type: str) -> str:
    return _ATTENTION_DROPOUT[0] if FAMILIES[model_type].names is _BERT else _ATTENTION_DROPOUT[1]


def settable_names(model_type: str) -> set[str]:
    """The names that `extra` may hold: the settings of the architecture that are no field of the encoder."""
    from transformers import CONFIG_MAPPING

    family = FAMILIES[model_type]
    fields = {names[0] for names in family.names.values() if names}
    own = set(CONFIG_MAPPING[model_type].__annotations__) | set(family.legacy)
    ids = {name for name in own if name.endswith("token_id")}
    return own - fields - ids - _NOT_SETTABLE - {"model_type", "keys_to_ignore_at_inference"}


def check_extra(model_type: str, extra: Mapping[str, Any]) -> None:
    """Raises UserError for a name that the architecture has not, or that is a field of the encoder."""
    family = FAMILIES[model_type]
    fields = {names[0]: ours for ours, names in family.names.items() if names}
    known = settable_names(model_type)
    for name in extra:
        if name in fields:
            raise UserError(f"model.encoder.extra.{name}: set it as model.encoder.{fields[name]}")
        if name not in known:
            meant = difflib.get_close_matches(name, known, n=1)
            way_out = f"did you mean {meant[0]}?" if meant else f"known here: {', '.join(sorted(known))}"
            raise UserError(f"unknown key model.encoder.extra.{name} for model_type {model_type} ({way_out})")
