"""A local folder of a transformers model, opened for fine-tuning or prediction: never the hub, never its own code."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from train.errors import UserError, first_line
from train.finetune.settings import Settings
from train.model.quiet import quiet
from train.monitor.logs import log

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_SPECIALS = {
    "unk_token": ("[UNK]", "<unk>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
_EXPORT = "bertmae.json"  # run, step and data of an export
_NEW_IN_ANY_HEAD = ("pooler",)  # masked-language models are saved without


class Opened(NamedTuple):
    """What a task reads of a model before it makes one."""

    config: Any
    length: int  # tokens of an input
    tokenizer: Any


def open_for(settings: Settings, **further: Any) -> Opened:
    """Configuration and tokenizer of the settings' model, at the length that is asked for or usual for the task.

    `further` goes to `open_tokenizer`. Raises UserError for what cannot be read, or a length that the model has not.
    """
    config = open_config(settings.model)
    length = chosen_length(settings.model, config, settings.max_length, settings.kind.max_length)
    return Opened(config, length, open_tokenizer(settings.model, config, length, **further))


def open_config(folder: Path) -> Any:
    """Its config.json. Raises UserError where there is none, or none that transformers knows."""
    from transformers import AutoConfig

    if not folder.is_dir():
        raise UserError(f"--model {folder}: no such folder; models are read from local folders alone")
    if not (folder / "config.json").is_file():
        run = (folder / "config.yaml").is_file()
        way_out = f"; export the run first: python -m train export {folder} --output DIR" if run else ""
        raise UserError(f"--model {folder}: no config.json, so no folder of a transformers model{way_out}")
    with mistakes_named(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def longest_input(config: Any) -> int:
    """Tokens that the encoder has positions for."""
    positions = int(getattr(config, "max_position_embeddings", 0) or 1 << 30)
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):  # counted from behind the id of padding
        positions -= config.pad_token_id + 1
    return positions


def chosen_length(folder: Path, config: Any, given: int | None, default: int) -> int:
    """Tokens of an input: what is given, else the default as far as the encoder goes. UserError above that."""
    limit = longest_input(config)
    if given is not None and given > limit:
        raise UserError(f"--max-length {given}: {folder} has positions for {limit} tokens")
    return given or min(default, limit)


def open_tokenizer(folder: Path, config: Any, max_length: int, *, split_words: bool = False) -> Any:
    """The folder's tokenizer, made to fit its encoder: what it returns can be given to the model as it is.

    `split_words`: it will be given lists of words, of which byte-level ones then begin each with a space.
    Raises UserError where there is none, it is not a fast one, or it has more tokens than the model.
    """
    from transformers import AutoTokenizer

    files = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model")
    if not any((folder / name).is_file() for name in files):
        raise UserError(f"--model {folder}: no tokenizer ({', '.join(files[:3])}); copy that of its pretraining there")
    names = ["input_ids", "attention_mask"]
    if (getattr(config, "type_vocab_size", 0) or 0) > 1:
        names.insert(1, "token_type_ids")
    with mistakes_named(folder, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(
            folder,
            local_files_only=True,
            trust_remote_code=False,
            model_input_names=names,
            model_max_length=max_length,
            **({"add_prefix_space": True} if split_words else {}),
        )
    if not tokenizer.is_fast:
        raise UserError(f"--model {folder}: its tokenizer has no fast form (tokenizer.json)")
    _name_specials(tokenizer)
    if tokenizer.pad_token is None:
        raise UserError(f"--model {folder}: its tokenizer has no token for padding; name it in tokenizer_config.json")
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"--model {folder}: its tokenizer has {len(tokenizer):,} tokens, the model {config.vocab_size:,}: "
            "it is that of another model"
        )
    return tokenizer


def _name_specials(tokenizer: Any) -> None:
    """A tokenizer.json alone does not say which token is which: the usual spellings do."""
    vocabulary = tokenizer.get_vocab()
    for name, spellings in _SPECIALS.items():
        there = [spelling for spelling in spellings if spelling in vocabulary]
        if there and getattr(tokenizer, name) is None:
            setattr(tokenizer, name, there[0])


def load_model(auto_class: Any, folder: Path, config: Any, added: tuple[str, ...] = ()) -> torch.nn.Module:
    """The model of `auto_class` in fp32 with the folder's weights; a head that the folder lacks is new, and said.

    `added` are parts of names that are new by the nature of the model, and not said.

    Raises UserError where weights of the encoder are missing, damaged, or the architecture has no such model.
    """
    if not any(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        raise UserError(f"--model {folder}: no weights (model.safetensors)")
    if type(config) not in auto_class._model_mapping:
        raise UserError(f"--model {folder}: transformers has no {auto_class.__name__} of a {config.model_type}")
    with quiet(), mistakes_named(folder, "weights"):
        model, report = auto_class.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            weights_only=True,
            output_loading_info=True,
        )
    new = sorted(name for name in report["missing_keys"] if not any(part in name for part in added))
    body = f"{model.base_model_prefix}." if hasattr(model, model.base_model_prefix) else ""
    if lost := [name for name in new if name.startswith(body) and not any(part in name for part in _NEW_IN_ANY_HEAD)]:
        raise UserError(f"--model {folder}: {len(lost)} weights of the encoder are missing, such as {lost[0]}")
    if new:
        parts = sorted({".".join(name.split(".")[:-1]).removeprefix(body) for name in new})
        log.info("New, not from %s: %s.", folder, ", ".join(parts))
    return model  # type: ignore[no-any-return]


def identity(folder: Path) -> dict[str, Any]:
    """What tells this model from others: the sha256 of its configuration and weights, and its export's own record."""
    files = [folder / "config.json", *sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern))]
    found: dict[str, Any] = {"folder": str(folder), "sha256": {path.name: _sha256(path) for path in files}}
    with suppress(OSError, ValueError):  # not an export of ours, or one of before there were such records
        found["export"] = json.loads((folder / _EXPORT).read_bytes())
    return found


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"--model {path}: cannot be read ({error.strerror})") from error


@contextmanager
def mistakes_named(folder: Path, what: str) -> Iterator[None]:
    """Whatever transformers raises on a folder that it cannot read, as one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # missing, damaged, of another shape, with code of its own: each its own class
        raise UserError(f"--model {folder}: its {what} cannot be read ({first_line(error)})") from error
