"""Owns the YAML of a configuration: files and overrides read by the rules of YAML 1.2, written back, and compared."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from data_pipeline.errors import UserError
from train.config import Config, find_field, section_classes
from train.config_mistakes import describe, show, unknown_key

Tree = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def load_config(path: Path, overrides: Sequence[str] = (), *, assumed_data: str | None = None) -> Config:
    """The configuration in the YAML file `path`, with `key.sub=value` overrides (values are YAML) laid over it.

    `assumed_data` stands for data.path where the configuration names no data. Raises UserError with one line that names
    the place, the key, the value and the way out.
    """
    # Every section exists, so that a missing required key is reported under its own name.
    tree: Tree = {section: {} for section in Config.model_fields} | _read_tree(path)
    for override in overrides:
        _apply_override(tree, override)
    data = tree["data"]
    if assumed_data and isinstance(data, dict) and not data.get("path") and not data.get("sources"):
        tree["data"] = data | {"path": assumed_data}
    try:
        return Config.model_validate(tree)
    except ValidationError as exc:
        mistakes = exc.errors(include_url=False)
    # An unknown key first: a required key reported as missing is often the same key, misspelt.
    mistakes.sort(key=lambda mistake: mistake["type"] != "extra_forbidden")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    source = _source(mistakes[0]["loc"], path, overrides)
    raise UserError(f"{source}: {describe(mistakes[0])}{more}")


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, in the order of the fields; `load_config` reads it back equal."""
    return str(
        yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)
    )


def differences(a: Config, b: Config, sections: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of the fields that differ, in the order of the fields.

    `sections` are dotted names of sections or fields ("model", "run.seed"); fields outside them are not compared.
    Raises KeyError for a name that does not exist.
    """
    for name in sections:
        if find_field(name.split(".")) is None:
            raise KeyError(name)
    pairs = zip(leaves(a.model_dump()), leaves(b.model_dump()), strict=True)
    return [
        (key, left, right)
        for (key, left), (_, right) in pairs
        if left != right and any(_within(key, section) for section in sections)
    ]


def _source(loc: tuple[int | str, ...], path: Path, overrides: Sequence[str]) -> str:
    """Who wrote the value at `loc`: an override of it or of a section around it, or else the file."""
    key = ".".join(name for name in loc if isinstance(name, str))
    written = bool(key) and any(_within(key, override.partition("=")[0]) for override in overrides)
    return "command line" if written else str(path)


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of every field of a dumped configuration, in the order of the fields."""
    for name, value in tree.items():
        if isinstance(value, Mapping) and f"{prefix}{name}" in section_classes():
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, by the rules of YAML 1.2. Raises UserError with its place for what cannot be read."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from None
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: not UTF-8 text (byte {exc.start}); save the file as UTF-8") from None
    return _parse_yaml(text, str(path))


def _read_tree(path: Path) -> Tree:
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        what = "empty" if tree is None else f"{show(tree)} is not a mapping"
        raise UserError(f"{path}: {what}; a configuration is sections such as run:, data: and model:")
    return tree


def _apply_override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.isprintable():
        raise UserError(f"command line: {override!r} is not an override; write it as key.sub=value")
    *parents, name = names = tuple(key.split("."))
    if find_field(names) is None:
        raise UserError(f"command line: {unknown_key(names)}")
    for depth, parent in enumerate(parents, 1):
        inner = tree.get(parent, {})
        if not isinstance(inner, dict):
            section = ".".join(parents[:depth])
            raise UserError(f"command line: {override!r}: in the file, {section} is {show(inner)} and not a section")
        # A copy, because an alias in the file puts one mapping in two places.
        tree[parent] = dict(inner)
        tree = tree[parent]
    tree[name] = _parse_yaml(text, f"command line: {override!r}")


# ---------------------------------------------------------------------------------------------------------------------
# YAML 1.2: PyYAML follows 1.1, where 1e-4 is text, on and no are booleans, 010 is 8 and 1:30 is 90

_TAG = "tag:yaml.org,2002:"
# tag: (what a plain scalar looks like, its possible first characters, its value)
_PLAIN_SCALARS: dict[str, tuple[re.Pattern[str], str, Callable[[str], object]]] = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN", lambda text: None),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF", lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?[0-9]+\Z"), "-+0123456789", int),
    "float": (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), "-+.0123456789", float),
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's way: add_implicit_resolver fills it
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, f"{_TAG}str", f"{_TAG}seq")
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    # The reader's rules decide what is quoted, or the text "1e4" would come back as a number.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def _construct_plain(loader: _Loader, node: yaml.ScalarNode) -> object:
    pattern, _, convert = _PLAIN_SCALARS[node.tag.removeprefix(_TAG)]
    text = loader.construct_scalar(node)
    # A plain scalar has matched already; one with an explicit tag (!!int x) has not.
    if not pattern.match(text):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {node.tag}", node.start_mark)
    return convert(text)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    tree: Tree = loader.construct_mapping(node, deep=True)
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag != f"{_TAG}str" or not key.value.isprintable():
            raise yaml.constructor.ConstructorError(None, None, "a key that is not plain text", key.start_mark)
        if key.value in lines:
            problem = f"key {key.value} is written twice, first on line {lines[key.value]}"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        lines[key.value] = key.start_mark.line + 1
    return tree


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # Unless it is escaped, PyYAML reads the next-line character that it wrote as a space.
    return dumper.represent_scalar(f"{_TAG}str", text, style='"' if "\x85" in text else None)


for _name, (_pattern, _first, _) in _PLAIN_SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _pattern, [*_first, ""] if _name == "null" else list(_first))
    _Loader.add_constructor(_TAG + _name, _construct_plain)
_Loader.add_constructor(f"{_TAG}map", _construct_mapping)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(f"{_TAG}seq", value, flow_style=True))


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader with fewer constructors
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{source}:{line} not valid YAML ({exc.problem or exc.context})") from None
    except yaml.reader.ReaderError as exc:
        raise UserError(f"{source}: not valid YAML (character {exc.position}: {exc.reason})") from None
