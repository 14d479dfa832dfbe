"""`python -m train compare A B`: are two models the same, and where not.

Configuration, tokens, names, shapes, number formats and values of every tensor; on request the outputs on some texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, MODEL_MAPPING
from transformers.utils import logging as transformers_logging

from train.errors import UserError
from train.model.pretrained import tokens_by_id
from train.model_files import ModelFiles, as_transformers, open_model

# Of config.json: who wrote it, and the number format, which the tensors show.
_NO_DIFFERENCE = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "_attn_implementation_autoset"}
_SHOWN_TOKENS = 3
_MOST_TOKENS = 512  # of a text whose outputs are compared


class Comparison(NamedTuple):
    """Whether two models are the same, and the lines to print."""

    same: bool
    lines: list[str]


class Difference(NamedTuple):
    """One tensor of both models. `largest` is max |a - b|; `relative` is that over the largest |a| or |b|."""

    name: str
    largest: float
    relative: float
    words: str  # what else differs, and how much of it


def compare(a: Path, b: Path, *, tolerance: float = 0.0, texts: Sequence[str] = (), rows: int = 20) -> Comparison:
    """Compare two folders that hold models. With a `tolerance` above 0, values and outputs may differ by that much, and
    number formats do not count. Raises UserError and CheckpointError for a folder that cannot be read."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    left, right = open_model(a), open_model(b)
    left, right = _under_common_names(left, right)
    lines = [f"A  {a} ({left.words})", f"B  {b} ({right.words})"]
    differences = [*_config_lines(left, right), *_token_lines(left, right)]
    names = sorted(set(left.tensors) | set(right.tensors))
    shared = [name for name in names if name in left and name in right]
    for side, other, letter in ((left, right, "A"), (right, left, "B")):
        differences += [f"only in {letter}: {name}{_shape(side, name)}" for name in side.tensors if name not in other]
    tied = [f"tied: {name} is {_owner(left, right, name)}" for name in shared if _is_tied(left, right, name)]
    found = [_difference(name, left.read(name), right.read(name), tolerance) for name in shared]
    differing = sorted((d for d in found if d is not None), key=lambda d: (-d.largest, d.name))
    lines += [*differences, *tied, *_table(differing, rows)]
    lines.append(f"{len(shared)} tensors in both, {len(shared) - len(differing)} equal, {len(differing)} different.")
    outputs = list(_output_lines(left, right, texts, tolerance)) if texts else []
    lines += [line for line, _ in outputs]
    same = not differences and not differing and all(agrees for _, agrees in outputs)
    within = f" within {tolerance:g}" if tolerance else ""
    return Comparison(same, [*lines, f"The models are the same{within}." if same else "The models differ."])


# ---------------------------------------------------------------------------------------------------------------------
# Names


def _under_common_names(left: ModelFiles, right: ModelFiles) -> tuple[ModelFiles, ModelFiles]:
    """Where one folder was saved by AutoModel and the other with a head, "bert." begins the names of one of them."""
    pair = []
    for side, other in ((left, right), (right, left)):
        prefix = f"{_base_prefix(side.config)}."
        has, others = (any(name.startswith(prefix) for name in model.tensors) for model in (side, other))
        pair.append(_without(side, prefix) if has and not others else side)
    return pair[0], pair[1]


def _base_prefix(config: Mapping[str, Any]) -> str:
    try:
        return str(MODEL_MAPPING[CONFIG_MAPPING[config["model_type"]]].base_model_prefix)
    except (KeyError, AttributeError):
        return "?"


def _without(model: ModelFiles, prefix: str) -> ModelFiles:
    tensors = {name.removeprefix(prefix): read for name, read in model.tensors.items()}
    tied = {alias.removeprefix(prefix): name.removeprefix(prefix) for alias, name in model.tied.items()}
    return ModelFiles(model.path, model.words, model.config, tensors, tied, model.tokenizer, model.weights)


def _is_tied(left: ModelFiles, right: ModelFiles, name: str) -> bool:
    return name not in left.tensors or name not in right.tensors


def _owner(left: ModelFiles, right: ModelFiles, name: str) -> str:
    side, letter = (left, "A") if name not in left.tensors else (right, "B")
    return f"{side.tied[name]} in {letter}"


# ---------------------------------------------------------------------------------------------------------------------
# What differs


def _config_lines(left: ModelFiles, right: ModelFiles) -> Iterator[str]:
    mine, theirs = _full(left.config), _full(right.config)
    for key in sorted(mine.keys() | theirs.keys()):
        a, b = mine.get(key, "absent"), theirs.get(key, "absent")
        if a != b and key not in _NO_DIFFERENCE:
            yield f"config {key}: {a} in A, {b} in B"


def _full(config: Mapping[str, Any]) -> dict[str, Any]:
    """With the defaults of its class, which one file may leave out and another hold."""
    try:
        return dict(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)).to_dict())
    except Exception:  # noqa: BLE001 - of many classes: an unknown architecture, or values that it refuses
        return dict(config)


def _token_lines(left: ModelFiles, right: ModelFiles) -> Iterator[str]:
    try:
        mine, theirs = tokens_by_id(left.tokenizer), tokens_by_id(right.tokenizer)
    except UserError:
        return  # one of them has no tokenizer of a kind that is known here
    other = [number for number in sorted(mine.keys() | theirs.keys()) if mine.get(number) != theirs.get(number)]
    if other:
        shown = ", ".join(
            f"{number} ({mine.get(number)!r}, {theirs.get(number)!r})" for number in other[:_SHOWN_TOKENS]
        )
        yield f"tokenizer: {len(other):,} ids have different tokens in A and B: {shown}"


def _shape(model: ModelFiles, name: str) -> str:
    tensor = model.read(name)
    return f" {list(tensor.shape)} {_format(tensor)}"


def _format(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _difference(name: str, a: torch.Tensor, b: torch.Tensor, tolerance: float) -> Difference | None:
    """What is different of one tensor; None where nothing is. NaN is equal to NaN in the same place, and no number."""
    if a.shape != b.shape:
        return Difference(name, float("inf"), float("inf"), f"shapes {list(a.shape)} and {list(b.shape)}")
    formats = f"{_format(a)} and {_format(b)}" if a.dtype != b.dtype and not tolerance else ""
    wide_a, wide_b = a.double(), b.double()
    apart = (wide_a - wide_b).abs_()
    apart[(wide_a == wide_b) | (wide_a.isnan() & wide_b.isnan())] = 0  # equal infinities too
    apart = apart.nan_to_num_(nan=float("inf"))
    many = int((apart > tolerance).sum())
    if not many and not formats:
        return None
    largest = float(apart.max()) if apart.numel() else 0.0
    scale = float(torch.maximum(wide_a.abs(), wide_b.abs()).nan_to_num_().max()) if apart.numel() else 0.0
    share = f"{many:,} of {apart.numel():,} values" if many else ""
    return Difference(name, largest, largest / scale if scale else 0.0, ", ".join(filter(None, (formats, share))))


def _table(differing: Sequence[Difference], rows: int) -> list[str]:
    if not differing:
        return []
    shown = differing[:rows]
    width = max(len(d.name) for d in shown)
    lines = [f"{'tensor':<{width}}  {'largest':>10}  {'relative':>10}  "]
    lines += [f"{d.name:<{width}}  {d.largest:>10.3g}  {d.relative:>10.3g}  {d.words}" for d in shown]
    if len(differing) > rows:
        lines.append(f"... and {len(differing) - rows} with smaller differences (--rows shows more)")
    return [line.rstrip() for line in lines]


# ---------------------------------------------------------------------------------------------------------------------
# Outputs


def _output_lines(
    left: ModelFiles, right: ModelFiles, texts: Sequence[str], tolerance: float
) -> Iterator[tuple[str, bool]]:
    """For each text the largest difference of the outputs, and whether that is none."""
    both = all(str(side.config.get("architectures")).endswith("ForMaskedLM']") for side in (left, right))
    what = "logits" if both else "last hidden states"
    for text, a, b in zip(texts, _outputs(left, texts, what), _outputs(right, texts, what), strict=True):
        if a.shape != b.shape:
            yield f"output on {text!r}: {list(a.shape)} and {list(b.shape)}, so other tokens or another width", False
            continue
        apart = float((a - b).abs().max())
        yield f"output on {text!r}: the {what} differ by at most {apart:.3g}", apart <= tolerance


@torch.no_grad()
def _outputs(model: ModelFiles, texts: Sequence[str], what: str) -> list[torch.Tensor]:
    from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

    with as_transformers(model) as folder:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            cls = AutoModelForMaskedLM if what == "logits" else AutoModel
            opened = cls.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"{model.path}: cannot be opened to compare outputs ({reason})") from error
        if opened.config.is_encoder_decoder:
            opened = opened.get_encoder()
        room = getattr(opened.config, "max_position_embeddings", _MOST_TOKENS + 2) - 2  # two are not roberta's to use
        most = min(_MOST_TOKENS, room)
        inputs = [tokenizer(text, return_tensors="pt", truncation=True, max_length=most) for text in texts]
        return [opened(**tokens)[0][0] for tokens in inputs]
