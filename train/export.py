"""A run's checkpoint as a folder that transformers opens: encoder, tokenizer, decoder and model card beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from train.checkpoint import Checkpoint, chosen, read_table, refuse_too_little_room
from train.config import Config
from train.config_file import load_config
from train.errors import CheckpointError, UserError
from train.model.encoder import encoder_config
from train.model_card import untrained_head, write_card
from train.monitor.logs import log
from train.whole_folder import refuse_used, whole_folder

ENCODER = "encoder.masked_lm."
DECODER = "decoder."


@dataclass(frozen=True, slots=True)
class EncoderForm:
    """What transformers expects of a run's encoder, made once: no model is built to write its weights."""

    config_json: str
    shapes: Mapping[str, torch.Size]  # of the tensors in its file
    tied: Mapping[str, str]  # other names of tensors in its file


def export(run: Path, output: Path, step: int | None = None) -> Iterator[str]:
    """Write the fp32 weights of the newest whole checkpoint, or that of `step`; yields what was done, in sentences.

    `AutoModel` and `AutoModelForMaskedLM` open the folder. Raises UserError when RUN is no run or DIR is in use, and
    CheckpointError where there is no such whole checkpoint.
    """
    found, problems = chosen(run, step)
    refuse_used(output)
    config = load_config(run / "config.yaml", [])
    form, weights = encoder_form(config, run / "tokenizer"), read_table(found.path, "model")
    with whole_folder(output) as folder:
        write_model(folder, config, form, weights, run / "tokenizer")
        write_card(folder, run, config, found.state)
    yield from (f"Not used: {problem}." for problem in problems)
    if sentence := untrained_head(config):
        yield sentence
    yield f"Exported step {found.step} ({found.state['tokens_seen']:,} tokens seen) of {run} to {output}."


def is_export_step(config: Config, step: int) -> bool:
    """Whether checkpoint.export_every asks for an export of this step; what a run starts from (step 0) is none."""
    every = config.checkpoint.export_every
    return bool(every and step and step % every == 0)


def export_step(
    config: Config, form: EncoderForm, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]
) -> None:
    """Write RUN/exports/step-NNNNNNNN from the state and the weights of a checkpoint. A disk that refuses costs a
    warning: a run does not end for its exports."""
    run, step = Path(config.run.directory), state["step"]
    output = _of_step(config, step)
    try:
        output.parent.mkdir(exist_ok=True)
        refuse_too_little_room(output.parent, [weights])
        with whole_folder(output) as folder:
            write_model(folder, config, form, weights, run / "tokenizer")
            write_card(folder, run, config, state)
    except (OSError, UserError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        way_out = f"`python -m train export {run} --step {step} --output DIR` writes it while its checkpoint is kept"
        log.warning("step %d: no export was written to %s: %s; %s", step, output, reason, way_out)


def write_missing_export(config: Config, found: Checkpoint) -> None:
    """Write what checkpoint.export_every asks for of a checkpoint whose process died between the two."""
    if is_export_step(config, found.step) and not _of_step(config, found.step).exists():
        form = encoder_form(config, Path(config.run.directory) / "tokenizer")
        export_step(config, form, found.state, read_table(found.path, "model"))


def encoder_form(config: Config, tokenizer_folder: Path) -> EncoderForm:
    """What the encoder of this configuration and tokenizer looks like on disk; asking transformers takes a moment."""
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, local_files_only=True)
    special_ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("pad", "cls", "sep", "mask")}
    settings = encoder_config(config.model, len(tokenizer), special_ids)
    with torch.device("meta"):
        model = AutoModelForMaskedLM.from_config(settings, dtype=torch.float32)
    model.config.architectures = [type(model).__name__]
    tied = dict(model.all_tied_weights_keys)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items() if name not in tied}
    return EncoderForm(model.config.to_json_string(), shapes, tied)


def write_model(
    folder: Path, config: Config, form: EncoderForm, weights: Mapping[str, torch.Tensor], tokenizer_folder: Path
) -> None:
    """The files of an export; `weights` are those of a checkpoint. Raises CheckpointError where they do not fit."""
    own = {name.removeprefix(ENCODER): tensor for name, tensor in weights.items() if name.startswith(ENCODER)}
    encoder = {form.tied.get(name, name): tensor for name, tensor in own.items()}
    if misfits := form.shapes.items() ^ {(name, tensor.shape) for name, tensor in encoder.items()}:
        names = sorted({name for name, _ in misfits})
        raise CheckpointError(f"the checkpoint does not fit the run's config.yaml: {names[:3]}")
    save_file(encoder, folder / "model.safetensors", metadata={"format": "pt"})  # transformers looks for the format
    (folder / "config.json").write_text(form.config_json, encoding="utf-8")
    for path in tokenizer_folder.iterdir():
        shutil.copy(path, folder / path.name)
    decoder = {name.removeprefix(DECODER): t for name, t in weights.items() if name.startswith(DECODER)}
    if decoder:
        save_file(decoder, folder / "decoder.safetensors")
        layout = {"decoder": config.model.resolved_decoder()._asdict(), "objective": config.objective.model_dump()}
        (folder / "decoder_config.json").write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def _of_step(config: Config, step: int) -> Path:
    return Path(config.run.directory) / "exports" / f"step-{step:08d}"
