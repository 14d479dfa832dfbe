"""An encoder and the decoder that is put before it: transformers' EncoderDecoderModel, and where its weights come from.

Rothe et al. 2020 ("Leveraging Pre-trained Checkpoints for Sequence Generation Tasks"): the decoder starts from the
weights of an encoder, with a causal mask, and new weights attend to the encoder's states (BERT2BERT). An export of the
objective span-corruption has a decoder that was trained to do all of that: it becomes the decoder of XLM-RoBERTa-XL,
whose layers normalise before attention as ours do. (So do Megatron-BERT's, but transformers 5.23 cannot attend to an
encoder with it.) The two are the same function but for positions: ours turn queries and keys, those of transformers'
decoders are embeddings, which begin at zero and are learned.

Legend: V vocabulary, D width, E width of the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.errors import UserError
from train.finetune.model_folder import load_model, longest_input, open_config
from train.model.quiet import quiet

DECODERS = ("auto", "encoder", "pretrained", "new")
_WRITERS = ("bert", "roberta", "xlm-roberta", "camembert", "electra")  # can be a decoder with cross-attention
_ADDED = ("pooler", "crossattention")
_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the decoder comes from."""

    kind: str  # "encoder", "pretrained" or "new"
    folder: Path  # of the model whose weights or vocabulary it takes
    words: str  # a sentence for the user


def decoder_origin(model: Path, target: Path | None, asked: str) -> Origin:
    """What the decoder will be made of. Raises UserError where what is asked for cannot be."""
    folder = target or model
    config = open_config(folder)
    objective, misfit = _pretrained_decoder(model, config) if target is None else ("", "")
    fits = bool(objective) and not misfit
    if asked == "pretrained" and not fits:
        why = misfit or ("--target-model has another vocabulary" if target else "it has no decoder.safetensors")
        raise UserError(f"--decoder pretrained: not from {model}: {why}")
    if asked == "pretrained" or (asked == "auto" and fits):
        return Origin("pretrained", folder, _PRETRAINED)
    aside = f" Its own decoder is left aside: {misfit}." if misfit and asked == "auto" else ""
    if config.model_type not in _WRITERS:
        if asked == "encoder":
            raise UserError(f"--decoder encoder: transformers has no decoder of a {config.model_type}; give new")
        words = f"a {config.model_type} cannot be one, so it is a new BERT with the token embeddings of {folder}"
        return Origin("new", folder, f"Decoder: {words}.{aside}")
    if asked == "new":
        return Origin("new", folder, f"Decoder: a new BERT with the token embeddings of {folder}.")
    return Origin("encoder", folder, f"Decoder: the weights of {folder} with new attention to the encoder.{aside}")


_PRETRAINED = (
    "Decoder: the pretrained one of the export, as that of an XLM-RoBERTa-XL: its layers, attention to the encoder and "
    "head; its rotations of positions become learned position embeddings, which begin at zero."
)


def _pretrained_decoder(folder: Path, config: Any) -> tuple[str, str]:
    """(objective of the decoder beside an export or "", why it cannot be used or "")."""
    if not (folder / "decoder.safetensors").is_file() or not (folder / "decoder_config.json").is_file():
        return "", ""
    layout = _layout(folder)
    objective = str(layout["objective"]["name"])
    if objective != "span-corruption":
        return objective, f"that of {objective} reads states of the encoder, no tokens, and writes all at once"
    width, encoder_width = layout["decoder"]["hidden_size"], config.hidden_size
    if width != encoder_width:
        return objective, f"its width is {width}, not the encoder's {encoder_width}, as transformers' decoders need"
    return objective, ""


def _layout(folder: Path) -> dict[str, Any]:
    path = folder / "decoder_config.json"
    try:
        layout = json.loads(path.read_bytes())
        sizes = {name: int(layout["decoder"][name]) for name in _SIZES}
        return {"decoder": sizes, "objective": {"name": layout["objective"]["name"]}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); export the run again") from error


def build(model: Path, origin: Origin, target_tokenizer: Any, generation: Mapping[str, Any]) -> torch.nn.Module:
    """The encoder of `model` with its decoder, in fp32, ready to train and to generate.

    Raises UserError for folders whose weights are missing or damaged.
    """
    from transformers import AutoModel, EncoderDecoderConfig, EncoderDecoderModel, GenerationConfig

    config = open_config(model)
    config.is_decoder = config.add_cross_attention = False
    encoder = load_model(AutoModel, model, config, _ADDED)
    decoder = _DECODER_OF[origin.kind](origin.folder, target_tokenizer)
    both = EncoderDecoderConfig.from_encoder_decoder_configs(encoder.config, decoder.config)
    both.tie_word_embeddings = False  # of encoder and decoder; each keeps its own ties
    ids = {name: generation[name] for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id")}
    for name, value in ids.items():
        setattr(both, name, value)
    with quiet():
        whole = EncoderDecoderModel(config=both, encoder=encoder, decoder=decoder)
    whole.generation_config = GenerationConfig(**generation)
    return whole  # type: ignore[no-any-return]


def _from_encoder(folder: Path, tokenizer: Any) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    config = open_config(folder)
    config.is_decoder = config.add_cross_attention = True
    return load_model(AutoModelForCausalLM, folder, config, _ADDED)


def _new(folder: Path, tokenizer: Any) -> torch.nn.Module:
    """A BERT of the same sizes. Only the embedding of tokens means the same in another architecture."""
    from transformers import AutoModel, BertConfig, BertLMHeadModel

    source: Any = load_model(AutoModel, folder, open_config(folder), _ADDED)
    sizes = {name: getattr(source.config, name) for name in _SIZES}
    table_VD = source.get_input_embeddings().weight
    config = BertConfig(
        **sizes,
        vocab_size=len(table_VD),
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=min(512, source.config.max_position_embeddings),
        attention_probs_dropout_prob=0.0,
        is_decoder=True,
        add_cross_attention=True,
    )
    decoder = BertLMHeadModel(config)
    with torch.no_grad():
        decoder.get_input_embeddings().weight.copy_(table_VD)
    return decoder  # type: ignore[no-any-return]


def _pretrained(folder: Path, tokenizer: Any) -> torch.nn.Module:
    """The CrossDecoder of an export as the decoder of an XLM-RoBERTa-XL."""
    from safetensors.torch import load_file
    from transformers import AutoModelForMaskedLM, XLMRobertaXLConfig, XLMRobertaXLForCausalLM

    source: Any = load_model(AutoModelForMaskedLM, folder, open_config(folder))
    ours, sizes = load_file(folder / "decoder.safetensors"), _layout(folder)["decoder"]
    embedding_VE = source.get_input_embeddings().weight.detach()
    output_VE = source.get_output_embeddings().weight.detach()
    config = XLMRobertaXLConfig(
        **sizes,
        vocab_size=len(embedding_VE),
        max_position_embeddings=longest_input(source.config) + tokenizer.pad_token_id + 1,
        type_vocab_size=1,
        hidden_act="gelu",
        layer_norm_eps=_epsilon(source.config),
        attention_probs_dropout_prob=0.0,
        hidden_dropout_prob=getattr(source.config, "hidden_dropout_prob", 0.0),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        is_decoder=True,
        add_cross_attention=True,
    )
    decoder = XLMRobertaXLForCausalLM(config)
    missing, unexpected = decoder.load_state_dict(
        xl_weights(ours, embedding_VE, output_VE, config.max_position_embeddings), strict=False
    )
    if missing or unexpected:
        raise UserError(
            f"{folder}/decoder.safetensors: does not fit decoder_config.json ({(missing + unexpected)[:2]})"
        )
    return decoder  # type: ignore[no-any-return]


def _epsilon(config: Any) -> float:
    names = ("layer_norm_eps", "norm_eps", "rms_norm_eps")
    return next(float(getattr(config, name)) for name in names if getattr(config, name, None) is not None)


def xl_weights(
    ours: Mapping[str, torch.Tensor], embedding_VE: torch.Tensor, output_VE: torch.Tensor, positions: int
) -> dict[str, torch.Tensor]:
    """The state of an XLMRobertaXLForCausalLM that says what a CrossDecoder of width E says, were all positions 0.

    Sentinels have no row: no text has them. `widen` and the embedding it reads become one table.
    """
    vocabulary, width = embedding_VE.shape
    embeddings, head = "roberta.embeddings.", "lm_head."
    result = {
        f"{embeddings}word_embeddings.weight": embedding_VE @ ours["widen.weight"].T + ours["widen.bias"],
        f"{embeddings}position_embeddings.weight": torch.zeros(positions, width),
        f"{embeddings}token_type_embeddings.weight": torch.zeros(1, width),
        f"{head}decoder.weight": output_VE.clone(),
        f"{head}bias": ours["bias"][:vocabulary].clone(),
        f"{head}decoder.bias": ours["bias"][:vocabulary].clone(),
    }
    named = {"norm": "roberta.encoder.LayerNorm", "to_embedding": f"{head}dense"}
    named["embedding_norm"] = f"{head}layer_norm"
    for name, tensor in ours.items():
        module, _, kind = name.rpartition(".")
        if module in named:
            result[f"{named[module]}.{kind}"] = tensor
        elif module.startswith("layers."):
            _, number, part = module.split(".")
            result |= {f"roberta.encoder.layer.{number}.{there}.{kind}": t for there, t in _parts(part, tensor)}
    return result


def _parts(part: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Names in a layer of XLM-RoBERTa-XL for one of ours, which holds the products of a kind together."""
    pieces = {
        "qkv": ("attention.self.query", "attention.self.key", "attention.self.value"),
        "cross_key_value": ("crossattention.self.key", "crossattention.self.value"),
    }
    single = {
        "attention_norm": "attention.self_attn_layer_norm",
        "attention_output": "attention.output.dense",
        "cross_norm": "crossattention.self_attn_layer_norm",
        "cross_query": "crossattention.self.query",
        "cross_output": "crossattention.output.dense",
        "feed_forward_norm": "LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
    }
    if part in single:
        return [(single[part], tensor)]
    return [(name, piece.clone()) for name, piece in zip(pieces[part], tensor.chunk(len(pieces[part])), strict=True)]


_DECODER_OF = {"encoder": _from_encoder, "pretrained": _pretrained, "new": _new}
