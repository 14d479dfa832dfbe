"""The tensors of a model wherever they lie: in a transformers folder, a run, or one of its checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from train.checkpoint import chosen, read_table
from train.checkpoint_folder import MANIFEST, STATE, verify
from train.config_file import load_config
from train.errors import CheckpointError, UserError
from train.export import DECODER, ENCODER, encoder_form, write_model

Reader = Callable[[], torch.Tensor]
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model whose tensors are read one at a time. `tied` are further names of tensors: {alias: name}."""

    path: Path
    words: str  # what it is
    config: Mapping[str, Any]  # as in config.json
    tensors: Mapping[str, Reader]
    tied: Mapping[str, str]
    tokenizer: Path  # the folder that may hold one
    weights: Path | None = None  # the checkpoint folder, where `path` is no transformers folder

    def read(self, name: str) -> torch.Tensor:
        """A tensor by its name, or by an alias of it."""
        return self.tensors[self.tied.get(name, name) if name not in self.tensors else name]()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors or self.tied.get(name) in self.tensors


def open_model(path: Path) -> ModelFiles:
    """The model in a folder. Raises UserError where there is none, CheckpointError where a checkpoint is damaged."""
    if (path / MANIFEST).is_file() and (path / STATE).is_file():
        if problem := verify(path):
            raise CheckpointError(f"{path}: {problem}")
        return _of_run(path.parent.parent, path, f"checkpoint {path.name}")
    if (path / "config.yaml").is_file() and (path / "checkpoints").is_dir():
        found, _ = chosen(path, None)
        return _of_run(path, found.path, f"run, step {found.step:,}")
    if (path / "config.yaml").is_file() and (path / "model.safetensors").is_file():
        return _of_run(path, path, "consolidated checkpoint")
    if (path / "config.json").is_file():
        return _of_transformers(path)
    raise UserError(f"{path}: no config.json, config.yaml or {MANIFEST}, so no model, no run and no checkpoint")


@contextmanager
def as_transformers(model: ModelFiles) -> Iterator[Path]:
    """A folder that transformers opens: the model's own, or an export of the checkpoint for the time of the body."""
    if model.weights is None:
        yield model.path
        return
    run = model.tokenizer.parent
    config = load_config(run / "config.yaml", [])
    with TemporaryDirectory(prefix="bertmae-") as folder:
        form = encoder_form(config, model.tokenizer)
        write_model(Path(folder), config, form, read_table(model.weights, "model"), model.tokenizer)
        yield Path(folder)


def _of_run(run: Path, weights: Path, words: str) -> ModelFiles:
    """A checkpoint under the names that its export has."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{weights}: a checkpoint outside its run folder; compare RUN/checkpoints/{weights.name}")
    form = encoder_form(load_config(run / "config.yaml", []), run / "tokenizer")
    tensors = {}
    for name, read in _of_safetensors(weights / "model.safetensors"):
        own = name.removeprefix(ENCODER)
        tensors[form.tied.get(own, own)] = read
    return ModelFiles(weights, words, json.loads(form.config_json), tensors, form.tied, run / "tokenizer", weights)


def _of_transformers(folder: Path) -> ModelFiles:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}/config.json: cannot be read ({error})") from error
    tensors = dict(_files_of(folder))
    if (folder / "decoder.safetensors").is_file():
        tensors |= {f"{DECODER}{name}": read for name, read in _of_safetensors(folder / "decoder.safetensors")}
    return ModelFiles(folder, "transformers folder", config, tensors, _tied(config), folder)


def _files_of(folder: Path) -> Iterator[tuple[str, Reader]]:
    """The tensors of one file, or of the parts that an index names."""
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _of_file(folder / name)
        if index.is_file():
            try:
                parts = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise UserError(f"{index}: cannot be read ({error})") from error
            return (pair for part in parts for pair in _of_file(folder / part))
    raise UserError(f"{folder}: none of {', '.join(_WEIGHTS)}, so no weights of a transformers model")


def _of_file(path: Path) -> Iterator[tuple[str, Reader]]:
    return _of_safetensors(path) if path.suffix == ".safetensors" else _of_pickle(path)


def _of_safetensors(path: Path) -> Iterator[tuple[str, Reader]]:
    def read(name: str) -> torch.Tensor:
        with safe_open(path, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    return ((name, partial(read, name)) for name in names)


def _of_pickle(path: Path) -> Iterator[tuple[str, Reader]]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        pairs = [(name, tensor) for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor)]
    except Exception as error:  # of many classes: damaged, no archive, or a pickle with code
        raise UserError(f"{path}: cannot be read ({str(error).strip().splitlines()[0]})") from error
    return ((name, partial(_itself, tensor)) for name, tensor in pairs)


def _itself(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def _tied(config: Mapping[str, Any]) -> dict[str, str]:
    """{alias: name} as the model's class says; none where transformers does not know the class."""
    import transformers

    named = (config.get("architectures") or [""])[0]
    cls = getattr(transformers, named, None) if named else None
    try:
        settings = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            return dict(cls(settings).all_tied_weights_keys)  # type: ignore[misc]
    except Exception:  # noqa: BLE001 - of many classes; the files say what they hold, and aliases count as missing
        return {}
