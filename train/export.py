"""A run's newest checkpoint as a folder that transformers opens: encoder, tokenizer, and the decoder beside them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers.utils import logging as transformers_logging

from train import checkpoint
from train.config import Config
from train.config_file import load_config
from train.errors import CheckpointError, UserError
from train.model.encoder import encoder_config

_ENCODER = "encoder.masked_lm."
_DECODER = "decoder."


def export(run: Path, output: Path) -> Iterator[str]:
    """Write the fp32 weights of the newest whole checkpoint; yields what was done, in sentences.

    `AutoModel` and `AutoModelForMaskedLM` open the folder. Raises UserError when RUN is no run or DIR is in use.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: no config.yaml, so no run folder")
    if output.exists() and any(output.iterdir()):
        raise UserError(f"{output}: already there and not empty; give another --output")
    transformers_logging.disable_progress_bar()
    config = load_config(run / "config.yaml", [])
    found, problems = checkpoint.newest_whole(run / "checkpoints")
    if found is None:
        raise CheckpointError(f"{run}: no whole checkpoint to export{''.join('; ' + text for text in problems)}")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        _write_model(config, run, found, partial)
        if output.exists():
            output.rmdir()
        partial.rename(output)
    except OSError as error:
        raise UserError(f"{output}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    yield from (f"Not used: {problem}." for problem in problems)
    if config.objective.name in ("mae", "latent-mae", "span-corruption"):
        yield (
            f"The objective {config.objective.name} does not train the masked-language-model head: fill-mask on this "
            "model means nothing."
        )
    yield f"Exported step {found.step} ({found.state['tokens_seen']:,} tokens seen) of {run} to {output}."


def load_masked_lm(config: Config, tokenizer_folder: Path, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The transformers masked-language model of a run, with the weights of a checkpoint."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    own = {name.removeprefix(_ENCODER): tensor for name, tensor in weights.items() if name.startswith(_ENCODER)}
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")}
    settings = encoder_config(config.model, len(tokenizer), special_ids)
    model = AutoModelForMaskedLM.from_config(settings, dtype=torch.float32)
    missing, unexpected = model.load_state_dict(own, strict=False)
    model.tie_weights()
    absent = set(missing) - set(model.all_tied_weights_keys)
    if absent or unexpected:
        raise CheckpointError(
            f"the checkpoint does not fit the run's config.yaml: {sorted([*absent, *unexpected])[:3]}"
        )
    return model  # type: ignore[no-any-return]


def _write_model(config: Config, run: Path, found: checkpoint.Checkpoint, folder: Path) -> None:
    weights = checkpoint.read_table(found.path, "model")
    load_masked_lm(config, run / "tokenizer", weights).save_pretrained(folder)  # type: ignore[operator]
    for path in (run / "tokenizer").iterdir():
        shutil.copy(path, folder / path.name)
    decoder = {name.removeprefix(_DECODER): t for name, t in weights.items() if name.startswith(_DECODER)}
    if decoder:
        save_file(decoder, folder / "decoder.safetensors")
        settings = {"decoder": config.model.resolved_decoder()._asdict(), "objective": config.objective.model_dump()}
        (folder / "decoder_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
