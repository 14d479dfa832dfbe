"""A local folder of a transformers model as the beginning of a run: its sizes, its tokenizer and its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM, PretrainedConfig

from train.config import Model as ModelConfig
from train.errors import UserError, first_line
from train.model.encoder import Encoder
from train.model.families import FAMILIES, attention_dropout, check_extra, settable_names, transformers_settings
from train.model.quiet import quiet

_KEY = "model.pretrained"

# ---------------------------------------------------------------------------------------------------------------------
# Sizes


def filled_encoder(folder: Path, given: Mapping[str, Any]) -> dict[str, Any]:
    """The encoder's section with what the folder's config.json says in the place of every field that is not given.

    Raises UserError where the folder cannot be read, is of an architecture that is not known here, or says other than
    what is given: only dropout, the deviation of fresh weights and the bases of rotations may differ.
    """
    config = _read_config(folder, str(given.get("model_type", "bert")))
    found = _fields(config)
    for name, value in given.items():
        if name != "extra" and value != found.get(name, value):
            _refuse_unless_free(folder, name, value, found[name])
    extra = given.get("extra", {})
    if not isinstance(extra, dict):
        return found | dict(given)  # a mistake that is reported with all others
    check_extra(config.model_type, extra)
    replaced = {FAMILIES[config.model_type].legacy.get(name) for name in extra}
    extra = {name: value for name, value in found["extra"].items() if name not in replaced} | extra
    encoder = found | dict(given) | {"extra": extra}
    for name, (value, theirs) in _differences(encoder, config).items():
        _refuse_unless_free(folder, f"extra.{name}", value, theirs)
    return encoder


def _refuse_unless_free(folder: Path, name: str, value: object, theirs: object) -> None:
    """What the weights do not depend on is free, and so are the bases of rotations, which grow with the length."""
    if not any(part in name for part in ("dropout", "initializer_range", "rope")):
        raise UserError(
            f"model.encoder.{name} {value}, but {folder / 'config.json'} says {theirs}: leave it out or take the same"
        )


def _read_config(folder: Path, assumed: str) -> PretrainedConfig:
    """Files of before 2020 name no architecture: `assumed` is taken."""
    try:
        settings = json.loads((folder / "config.json").read_bytes())
        kind = settings.get("model_type", assumed)
    except FileNotFoundError:
        raise UserError(f"{_KEY} {folder}: no config.json, so no folder of a transformers model") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{_KEY} {folder}: its config.json cannot be read ({first_line(error)})") from error
    if kind not in FAMILIES:
        raise UserError(f"{_KEY} {folder}: model_type {kind} is not one of {', '.join(FAMILIES)}")
    try:
        return CONFIG_MAPPING[kind].from_dict(settings)
    except Exception as error:  # whatever transformers raises on impossible values: many classes of its own
        raise UserError(f"{_KEY} {folder}: its config.json cannot be used ({first_line(error)})") from error


def _fields(config: PretrainedConfig) -> dict[str, Any]:
    """The encoder's section that builds this configuration again."""
    family = FAMILIES[config.model_type]
    encoder = {ours: getattr(config, names[0]) if names else 0.0 for ours, names in family.names.items()}
    encoder |= {"model_type": config.model_type, "extra": {}}
    if family.counts_from_padding:
        encoder["max_position_embeddings"] -= config.pad_token_id + 1
    encoder["extra"] = _further_settings(config, encoder)
    return encoder


def _further_settings(config: PretrainedConfig, encoder: Mapping[str, Any]) -> dict[str, Any]:
    """What `extra` must hold: all that differs from a configuration made of the other fields alone."""
    further = {name: theirs for name, (_, theirs) in _differences(encoder, config).items()}
    # The rows of the embedding are kept, also those behind the last token of the tokenizer.
    return {"vocab_size": config.vocab_size, **further}


def _differences(encoder: Mapping[str, Any], config: PretrainedConfig) -> dict[str, tuple[Any, Any]]:
    """{name: (as the encoder's section has it, as the folder has it)} of the settings that `extra` may hold."""
    ids = dict.fromkeys(("cls", "sep", "mask"), 0) | {"pad": config.pad_token_id or 0}
    try:
        built = CONFIG_MAPPING[config.model_type](**transformers_settings(encoder, config.vocab_size, ids))
    except Exception as error:  # of several classes, all of them on values in `extra`
        raise UserError(f"model.encoder: transformers refuses these settings ({first_line(error)})") from error
    names = sorted(settable_names(config.model_type) - set(FAMILIES[config.model_type].legacy))
    pairs = {name: (getattr(built, name), getattr(config, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizer and weights


def check_tokenizer(folder: Path, tokenizer_folder: Path) -> None:
    """Raises UserError where the folder's tokenizer has another token at any id than that of the data set."""
    theirs, ours = tokens_by_id(folder), tokens_by_id(tokenizer_folder)
    for number in sorted(theirs.keys() | ours.keys()):
        if theirs.get(number) != ours.get(number):
            raise UserError(
                f"{_KEY} {folder}: its tokenizer is not that of the data set: token {number} is "
                f"{theirs.get(number)!r} there and {ours.get(number)!r} here; build the data set with "
                f"--tokenizer {folder}"
            )


def tokens_by_id(folder: Path) -> dict[int, str]:
    """Every token of a tokenizer.json, or of a vocab.txt or vocab.json where that is all there is."""
    try:
        if (folder / "tokenizer.json").is_file():
            return _tokens_of(json.loads((folder / "tokenizer.json").read_bytes()))
        if (folder / "vocab.txt").is_file():
            lines = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")
            return {number: line.rstrip("\r") for number, line in enumerate(lines) if line or number < len(lines) - 1}
        return {number: token for token, number in json.loads((folder / "vocab.json").read_bytes()).items()}
    except FileNotFoundError:
        raise UserError(f"{_KEY} {folder}: neither tokenizer.json nor vocab.txt, so no tokenizer to compare") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{_KEY} {folder}: its tokenizer cannot be read ({first_line(error)})") from error


def _tokens_of(description: Mapping[str, Any]) -> dict[int, str]:
    vocabulary = description["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a unigram model: tokens with their scores
        tokens = {number: token for number, (token, _) in enumerate(vocabulary)}
    else:
        tokens = {number: token for token, number in vocabulary.items()}
    return tokens | {entry["id"]: entry["content"] for entry in description.get("added_tokens", [])}


def load_pretrained(encoder: Encoder, model: ModelConfig, tokenizer_folder: Path) -> list[str]:
    """Give a new encoder the weights of `model.pretrained`; the sentences tell what is not from there.

    safetensors, or pytorch_model.bin read with `weights_only`. A head that the folder has not keeps its new weights.
    Raises UserError where the folder has not all weights of the encoder, its config.json has changed, or its tokenizer
    is not that of the data set.
    """
    folder = Path(str(model.pretrained))
    check_tokenizer(folder, tokenizer_folder)
    filled_encoder(folder, model.encoder.model_dump())
    with quiet():
        loaded, missing = _read_weights(folder, encoder.masked_lm.config)
    body = f"{encoder.masked_lm.base_model_prefix}."
    if lost := sorted(name for name in missing if name.startswith(body)):
        raise UserError(f"{_KEY} {folder}: {len(lost)} weights of the encoder are missing, such as {lost[0]}")
    encoder.masked_lm.load_state_dict({k: v for k, v in loaded.items() if k not in missing}, strict=False)
    sentences = [f"The encoder starts from the weights of {folder}."]
    if missing:
        sentences.append(f"{folder} has no masked-language-model head: a new one is trained.")
    return sentences


def _read_weights(folder: Path, config: PretrainedConfig) -> tuple[dict[str, torch.Tensor], set[str]]:
    """(every tensor of the masked-language model, the names of those that are not in the folder)."""
    try:
        model, report = AutoModelForMaskedLM.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # missing, damaged, of another shape, or a pickle with code: each its own class
        raise UserError(f"{_KEY} {folder}: its weights cannot be read ({first_line(error)})") from error
    return model.state_dict(), set(report["missing_keys"])


def left_out(model: ModelConfig) -> list[str]:
    """One sentence where a dropout is asked for that the attention kernel has not."""
    dropout = attention_dropout(model.encoder.model_type, model.encoder.extra)
    if not dropout:
        return []
    whose = f"{model.pretrained}" if model.pretrained else "model.encoder.extra"
    return [f"Attention dropout is 0 and not {dropout:g} as in {whose}: the padding-free attention kernel has none."]
