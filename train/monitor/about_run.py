"""What a run is, for TensorBoard's panels Text and HParams: configuration, versions, and numbers to compare runs by."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard.summary import hparams, text

from train.config import Config
from train.config_file import dump_config
from train.provenance import provenance

_COMPARED_BY = ("loss/total", "loss/validation", "speed/tokens_per_second", "progress/tokens_seen")  # tags of curves


def about_run(config: Config) -> Iterator[Summary]:
    """Summaries that belong to no step."""
    origin = provenance(config)
    yield text("config", f"```yaml\n{dump_config(config)}\n```")
    yield text("environment", _as_table({"code": origin["code"], **origin["versions"]}))
    yield from hparams(dict(_fields(origin["config"], "")), dict.fromkeys(_COMPARED_BY, 0.0))


def _as_table(values: dict[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())])


def _fields(section: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Every field by its dotted name; TensorBoard compares numbers, words and truths, the rest is written as JSON."""
    for name, value in section.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{name}.")
        elif isinstance(value, int | float | str | bool):
            yield f"{prefix}{name}", value
        elif value is not None:
            yield f"{prefix}{name}", json.dumps(value)
