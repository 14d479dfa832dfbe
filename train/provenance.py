"""What a checkpoint says of its making: the configuration, the versions, the code, where its randomness comes from."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from train.config import Config

_ROOT = Path(__file__).parents[1]
_PACKAGES = ("torch", "deepspeed", "transformers")
_PATIENCE = 10.0  # seconds


def provenance(config: Config) -> dict[str, Any]:
    """For people and for tools: nothing of it is needed to go on, and checkpoints without it load as well."""
    return {
        "objective": config.objective.name,
        "optimizer": config.optimizer.name,
        "randomness": {
            "seed": config.run.seed,
            "rule": "first weights: of the seed; order: of seed and epoch; masks: of seed, epoch and row; "
            "dropout: of seed, step and rank. No generator has a state that would have to be kept.",
        },
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}},
        "code": code_version(_ROOT),
        "config": config.model_dump(mode="json"),
    }


@cache
def code_version(root: Path) -> str:
    """The commit that is checked out in `root`, with -dirty where files differ from it; else the package's version."""
    command = ["git", "--no-optional-locks", "-C", str(root)]
    command += ["describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        if (root / ".git").exists():  # or git would look in the folders around it
            done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=True)
            return f"commit {done.stdout.strip()}"
    except (OSError, subprocess.SubprocessError):
        pass  # no git, or one that refuses this folder
    return f"bertmae {_version('bertmae')}"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
