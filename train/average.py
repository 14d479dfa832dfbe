"""The mean of a run's last checkpoints as one export: it often does better than the last one alone.

Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization": all count the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from train.checkpoint import Checkpoint, run_checkpoints
from train.checkpoint_folder import STATE, committed, read_json, verify
from train.config_file import load_config
from train.errors import CheckpointError, UserError
from train.export import encoder_form, write_model
from train.model_card import untrained_head, write_card
from train.whole_folder import refuse_used, whole_folder

Shapes = Mapping[str, tuple[int, ...]]


def average(run: Path, output: Path, last: int) -> Iterator[str]:
    """Write the mean of the newest `last` whole checkpoints as `export` writes one; yields what was done, in sentences.

    Every byte of every checkpoint is verified first. Sums are fp64, and at any time one tensor of one checkpoint is in
    memory beside the result. Raises UserError where `run` is no run folder, `output` is in use or `last` is below 2,
    CheckpointError where fewer than two checkpoints are whole or their tensors are not the same.
    """
    if last < 2:
        raise UserError(f"--last {last}: a mean takes at least two checkpoints")
    folder = run_checkpoints(run)
    refuse_used(output)
    config = load_config(run / "config.yaml", [])
    chosen, problems = _newest(folder, last)
    yield from (f"Left out: {problem}." for problem in problems)
    if len(chosen) < 2:
        raise CheckpointError(f"{folder}: {len(chosen)} whole checkpoints to average; checkpoint.keep_last keeps more")
    form, weights = encoder_form(config, run / "tokenizer"), mean_weights([found.path for found in chosen])
    steps = [found.step for found in chosen]
    with whole_folder(output) as partial:
        write_model(partial, config, form, weights, run / "tokenizer")
        write_card(partial, run, config, chosen[-1].state, averaged=steps)
    if len(chosen) < last:
        yield f"Only {len(chosen)} of the {last} are there; checkpoint.keep_last and keep_every decide how many stay."
    if sentence := untrained_head(config):
        yield sentence
    yield f"Averaged {len(steps)} checkpoints of {run} (steps {', '.join(f'{step:,}' for step in steps)}) to {output}."


def mean_weights(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The fp32 mean of the weights of checkpoint folders, by parameter name. Raises CheckpointError where a file cannot
    be read or the checkpoints have not the same tensors."""
    shapes = [_shapes(path) for path in paths]
    for path, other in zip(paths, shapes, strict=True):
        if other != shapes[0]:
            names = sorted({name for name, _ in shapes[0].items() ^ other.items()})
            raise CheckpointError(f"{path}: not the same tensors as in {paths[0].name}, such as {names[0]}")
    return {name: _mean(paths, name) for name in shapes[0]}


def _newest(folder: Path, last: int) -> tuple[list[Checkpoint], list[str]]:
    """The newest `last` whole checkpoints, oldest first, and a sentence for each that is passed over."""
    found: list[Checkpoint] = []
    problems: list[str] = []
    for path in sorted(committed(folder), reverse=True):
        if len(found) == last:
            break
        if problem := verify(path):
            problems.append(f"{path}: {problem}")
        elif (state := read_json(path / STATE))["step"] == 0:
            problems.append(f"{path}: step 0, which has learned nothing")
        else:
            found.append(Checkpoint(path, state))
    return found[::-1], problems


def _shapes(path: Path) -> Shapes:
    with _weights(path) as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping


def _mean(paths: Sequence[Path], name: str) -> torch.Tensor:
    total: torch.Tensor | None = None
    for path in paths:
        with _weights(path) as file:
            tensor = file.get_tensor(name)
            total = tensor.double() if total is None else total.add_(tensor)
    if total is None:
        raise CheckpointError(f"no checkpoint has {name}")
    return (total / len(paths)).float()


def _weights(path: Path) -> safe_open:
    """Opened anew for every tensor: a file that stays mapped would keep its pages."""
    try:
        return safe_open(path / "model.safetensors", framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}/model.safetensors: cannot be read ({error})") from error
