"""A DeepSpeed configuration for the Trainer: a file of ds_configs/ or any other, checked before it is used."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from train.ds_config import TOP_LEVEL
from train.errors import UserError

_ROOT = Path(__file__).parents[2]
_TRAINERS = {"train_batch_size", "optimizer", "scheduler", "activation_checkpointing", "zero_optimization"}


def read_deepspeed(path: Path, precision: str) -> dict[str, Any]:
    """The configuration with what the Trainer does not fill itself: it replaces "auto" where it knows the value.

    Raises UserError for a file that cannot be read, an unknown key, and a precision that a ZeRO stage trains wrongly.
    """
    found = next((place for place in (path, _ROOT / path) if place.is_file()), path)
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--deepspeed {path}: {error.strerror}; the presets are in ds_configs/") from error
    except ValueError as error:
        raise UserError(f"--deepspeed {path}: not JSON ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization"), dict):
        raise UserError(f"--deepspeed {path}: not a DeepSpeed configuration (no zero_optimization)")
    known = TOP_LEVEL | _TRAINERS
    for key in sorted(config.keys() - known):
        near = difflib.get_close_matches(key, known, n=1)
        raise UserError(f"--deepspeed {path}: unknown key {key}{f' (did you mean {near[0]}?)' if near else ''}")
    if config["zero_optimization"].get("stage", 0) == 0 and precision != "fp32":
        # As in pretraining: DeepSpeed takes a hidden optimizer step at the start of bf16 there.
        raise UserError(f"--deepspeed {path}: ZeRO stage 0 does not train {precision} rightly: use zero1.json or fp32")
    config.pop("torch_autocast", None)  # the Trainer has its own
    for section in ("bf16", "fp16"):
        config.setdefault(section, {})["enabled"] = precision == section
    if "data_types" in config:
        config["data_types"]["grad_accum_dtype"] = "fp32"
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False  # torch's own AdamW also runs on the CPU, without a compiler
    if config["zero_optimization"]["stage"] == 3:
        config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = True
    return config
