"""Owns the reference of the configuration: docs/configuration.md is what `render` returns."""

import json
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from train.config import field_rows, section_classes

_HEAD = """\
# Configuration

This page is generated from `train/config.py` by `python -m train config-reference`; a test keeps it in step.

A run is described by a YAML file of sections, and by overrides on the command line that are laid over it:

    torchrun --nproc-per-node 8 -m train pretrain configs/bert-base.yaml data.path=shards optimizer.learning_rate=2e-4

- A key that is left out has the default below. Only `data.path`, or `data.sources`, must be given.
- An override is `section.key=value`. The value is YAML: `optimizer.betas=[0.9,0.95]`, `schedule.decay_steps=null`.
  The last one wins where a key is given twice.
- The file is read by the rules of YAML 1.2: `1e-4` is a number, and `on`, `off`, `yes` and `no` are text. Anchors and
  aliases work; merge keys (`<<`), tags of other types and a key written twice are errors.
- Types are not converted: `"8"` is no integer and `1` is not `true`. An integer is fine where a number is asked for.
- A mistake ends the command with exit code 2 and one line that names the key, the value and the way out.
- The resolved configuration, with every default and override in it, is saved as `config.yaml` in the run directory.
- Paths are taken from the working directory.

What is no field, and why:

- The **vocabulary size**, the special tokens and the tokenizer belong to the data set and come from its manifest.
- The **accumulation steps** follow from the batch: `global_batch_size / (micro_batch_size x devices)` must be whole.
- **Attention dropout** is always 0: the attention kernel for padding-free batches has none.

"""

_TYPES: dict[object, str] = {
    int: "integer",
    float: "number",
    str: "text",
    bool: "true or false",
    NoneType: "null",
}
_BOUNDS = ((Gt, "gt", "> "), (Ge, "ge", ">= "), (Lt, "lt", "< "), (Le, "le", "<= "))


def render() -> str:
    """The reference in Markdown: a head, then a table of fields for each section."""
    return _HEAD + "\n".join(_section(name, cls.__doc__ or "") for name, cls in section_classes().items())


def _section(section: str, sentences: str) -> str:
    rows = [_row(row.name, row.info) for row in field_rows() if row.section == section]
    table = ["| Key | Type | Default | Meaning |", "|---|---|---|---|", *rows]
    return "\n".join([f"## {section}", "", " ".join(sentences.split()), "", *table, ""])


def _row(name: str, info: FieldInfo) -> str:
    cells = (f"`{name}`", _type(info.annotation, info.metadata), _default(info), info.description or "")
    return f"| {' | '.join(cells)} |"


def _type(annotation: Any, metadata: list[Any]) -> str:
    return ", ".join([_name(annotation), *_bounds(metadata)])


def _name(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin is tuple and get_origin(args[0]) is Literal:
        return f"list of {_name(args[0])}"
    if origin is tuple and args[-1] is Ellipsis:
        return f"list of {{{', '.join(args[0].model_fields)}}}"
    if origin is tuple:
        return f"list of {len(args)}: {_name(args[0])}"
    if origin is dict:
        return "mapping"
    if origin is Annotated:
        return _type(args[0], args[1].metadata)
    return " or ".join(_TYPES[arg] for arg in args) or _TYPES[annotation]


def _bounds(metadata: list[Any]) -> list[str]:
    texts = [
        f"{sign}{getattr(item, attribute)}"
        for kind, attribute, sign in _BOUNDS
        for item in metadata
        if isinstance(item, kind)
    ]
    return ["not empty" for item in metadata if isinstance(item, MinLen)] + texts


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    text = info.default if isinstance(info.default, str) else json.dumps(info.default)
    return f"`{text}`"
