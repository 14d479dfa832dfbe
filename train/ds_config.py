"""The DeepSpeed configuration of a run: read from a file, checked, and filled from the run's own configuration."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import Any

from train.config import Config, gradient_accumulation_steps
from train.errors import UserError

# DeepSpeed takes an unknown top-level key without a word, so that a misspelt one changes nothing.
TOP_LEVEL = frozenset(
    {
        "bf16",
        "communication_data_type",
        "data_types",
        "fp16",
        "gradient_accumulation_steps",
        "gradient_clipping",
        "gradient_predivide_factor",
        "prescale_gradients",
        "steps_per_print",
        "torch_autocast",
        "train_micro_batch_size_per_gpu",
        "wall_clock_breakdown",
        "zero_allow_untested_optimizer",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
# Nor does it look at the keys of these sections.
_NESTED = {"data_types": {"grad_accum_dtype"}, "torch_autocast": {"enabled", "dtype"}}
_ROOT = Path(__file__).parents[1]


def load_ds_config(config: Config, world_size: int) -> dict[str, Any]:
    """The whole DeepSpeed configuration, every "auto" replaced by the run's value.

    Raises UserError for a missing file, an unknown top-level key, a value that contradicts the run's configuration,
    an "auto" that the run's configuration cannot fill and a precision that the ZeRO stage does not train rightly.
    """
    path = _find(config.engine.ds_config)
    ds_config = _read(path)
    for key in ds_config.keys() - TOP_LEVEL:
        near = difflib.get_close_matches(key, TOP_LEVEL, n=1)
        hint = f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(sorted(TOP_LEVEL))})"
        raise UserError(f"{path}: unknown key {key}{hint}")
    stage = _stage(ds_config, path)
    for dotted, value in _owned(config, world_size).items():
        _fill(ds_config, dotted, value, path)
    _refuse_open_auto(ds_config, path)
    for section, known in _NESTED.items():
        for key in ds_config[section].keys() - known:
            raise UserError(f"{path}: unknown key {section}.{key} (known: {', '.join(sorted(known))})")
    _check_offload(ds_config["zero_optimization"], stage, path)
    if ds_config["zero_optimization"].get("round_robin_gradients"):
        # It trains rightly, but what DeepSpeed 0.19.8 says of where the weights lie is then wrong.
        raise UserError(
            f"{path}: zero_optimization.round_robin_gradients: checkpoints would hold wrong weights: set it to false"
        )
    if stage == 0 and (ds_config["bf16"]["enabled"] or ds_config["fp16"]["enabled"]):
        # With bf16 DeepSpeed takes a hidden optimizer step at start there: a wrong first update, one decay too many.
        raise UserError(
            f"{path}: ZeRO stage 0 does not train {config.engine.precision} rightly: use ds_configs/zero1.json, "
            "engine.precision=fp32 or, for bf16, engine.autocast=true"
        )
    if stage == 3 and config.engine.precision == "fp16":
        # In a step after which the loss scale grows, DeepSpeed divides the gradients by the scale that comes next.
        raise UserError(
            f"{path}: ZeRO stage 3 does not train fp16 rightly: use ds_configs/zero2.json or engine.precision=bf16"
        )
    if stage == 3 and config.model.compile:
        # Its hooks fetch the weights of every single module: the compiler gives up at each of them.
        raise UserError(
            f"{path}: ZeRO stage 3 leaves nothing to compile: use ds_configs/zero2.json or model.compile=false"
        )
    ds_config["zero_allow_untested_optimizer"] = config.optimizer.name != "adamw"  # ours are tested at every stage
    if stage == 0:
        # The engine clips itself there, beside the guard against NaN that DeepSpeed lacks.
        ds_config["gradient_clipping"] = 0.0
    return ds_config


def zero_stage(ds_config: dict[str, Any]) -> int:
    """The ZeRO stage a DeepSpeed configuration asks for."""
    return int(ds_config["zero_optimization"]["stage"])


def offloads(ds_config: dict[str, Any]) -> bool:
    """Whether the optimizer runs on the CPU, with its state in host memory."""
    section = ds_config["zero_optimization"].get("offload_optimizer") or {}
    return bool(section.get("device", "none") != "none")


def _owned(config: Config, world_size: int) -> dict[str, Any]:
    """What the run's configuration decides: a file may only say "auto" or the same."""
    return {
        "train_micro_batch_size_per_gpu": config.batch.micro_batch_size,
        "gradient_accumulation_steps": gradient_accumulation_steps(config, world_size),
        "gradient_clipping": config.optimizer.gradient_clipping,
        "bf16.enabled": config.engine.precision == "bf16" and not config.engine.autocast,
        "bf16.check_grad_overflow": True,
        "torch_autocast.enabled": config.engine.autocast,
        "torch_autocast.dtype": "bfloat16",
        "fp16.enabled": config.engine.precision == "fp16",
        "data_types.grad_accum_dtype": "fp32",
        "zero_force_ds_cpu_optimizer": False,  # torch's own fused AdamW also runs on the CPU, without a compiler
    }


def _check_offload(zero: dict[str, Any], stage: int, path: Path) -> None:
    """Refuse what DeepSpeed passes over in silence, or goes on from wrongly."""
    if old := {"cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"} & zero.keys():
        raise UserError(f"{path}: zero_optimization.{min(old)} is an old name: use offload_optimizer or offload_param")
    for part, stages in (("offload_optimizer", (1, 2, 3)), ("offload_param", (3,))):
        section = zero.get(part) or {}
        device = section.get("device", "none") if isinstance(section, dict) else "none"
        if device == "nvme":
            raise UserError(
                f"{path}: zero_optimization.{part}.device nvme: DeepSpeed 0.19.8 trains, but does not go on rightly "
                'from a checkpoint: use "cpu", as in ds_configs/zero3-offload-parameters.json'
            )
        if device != "none" and stage not in stages:
            raise UserError(
                f"{path}: zero_optimization.{part} has no effect at ZeRO stage {stage}: use stage "
                f"{' or '.join(map(str, stages))}, as in ds_configs/zero3-offload-parameters.json"
            )


def _fill(ds_config: dict[str, Any], dotted: str, value: Any, path: Path) -> None:
    *parents, name = dotted.split(".")
    section = ds_config
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise UserError(f"{path}: {parent} must be an object")
    written = section.setdefault(name, "auto")
    if written not in ("auto", value):
        raise UserError(f'{path}: {dotted} is {written!r}, the run\'s configuration says {value!r}: write "auto"')
    section[name] = value


def _refuse_open_auto(section: dict[str, Any], path: Path, prefix: str = "") -> None:
    """DeepSpeed drops a nested "auto", and takes one at the top level for a text that is true."""
    for key, value in section.items():
        if isinstance(value, dict):
            _refuse_open_auto(value, path, f"{prefix}{key}.")
        elif value == "auto":
            raise UserError(f'{path}: {prefix}{key} is "auto", but no field of the run decides it: write a value')


def _stage(ds_config: dict[str, Any], path: Path) -> int:
    zero = ds_config.get("zero_optimization")
    if not isinstance(zero, dict) or zero.get("stage") not in (0, 1, 2, 3):
        raise UserError(f"{path}: zero_optimization.stage must be 0, 1, 2 or 3")
    return zero_stage(ds_config)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON takes the last of equal keys without a word."""
    keys = [key for key, _ in pairs]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"key {twice[0]} stands there twice")
    return dict(pairs)


def _find(name: str) -> Path:
    """A path from the working directory, or else from the folder that holds this project."""
    return next((path for path in (Path(name), _ROOT / name) if path.is_file()), Path(name))


def _read(path: Path) -> dict[str, Any]:
    try:
        ds_config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        raise UserError(f"engine.ds_config {path}: {error.strerror}; the presets are in ds_configs/") from error
    except ValueError as error:
        raise UserError(f"engine.ds_config {path}: not JSON ({error})") from error
    if not isinstance(ds_config, dict):
        raise UserError(f"engine.ds_config {path}: not a JSON object")
    return ds_config
