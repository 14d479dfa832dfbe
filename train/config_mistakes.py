"""Owns what a mistake in a configuration says: one line with the key, the value and the way out."""

import difflib
import re
from collections.abc import Sequence

from pydantic_core import ErrorDetails

from train.config import Config, field_rows, find_field, section_classes


def describe(mistake: ErrorDetails) -> str:
    """One line with the key, the value and what is wrong with it."""
    kind, loc, context = mistake["type"], mistake["loc"], mistake.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return unknown_key(tuple(str(name) for name in loc))
    if kind == "missing" and isinstance(loc[-1], str):
        return f"{_dotted(loc)} is missing: set it in the file or as {_dotted(loc)}=VALUE on the command line"
    if kind == "missing":
        kind, loc = "too_short", loc[:-1]
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", str(context["expected"]))
        meant = difflib.get_close_matches(str(mistake["input"]), expected, n=1)
        fault = f"is not one of {', '.join(expected)}{_did_you_mean(meant)}"
    elif kind == "tuple_type" and loc[-1] != "betas":
        fault = "is not a list"
    else:
        fault = _FAULTS.get(kind, mistake["msg"]).format_map(context)
    return f"{_dotted(loc)}: {show(mistake['input'])} {fault}"


_FAULTS = {
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "string_type": "is not text (put it in quotes)",
    "string_too_short": "is empty",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "tuple_type": "is not a list of two numbers",
    "too_short": "is not a list of two numbers",
    "too_long": "is not a list of two numbers",
    "model_type": "is not a section of keys and values",
    "greater_than": "is not above {gt}",
    "greater_than_equal": "is below the smallest allowed value, {ge}",
    "less_than": "is not below {lt}",
    "less_than_equal": "is above the largest allowed value, {le}",
}


def unknown_key(names: tuple[str, ...]) -> str:
    """One line on a key that does not exist, with the nearest that do."""
    *parents, name = names
    key = ".".join(names)
    if find_field(key.split(".")) is not None:
        return f"unknown key {key} (in a file, write the sections as nested keys; dots are for the command line)"
    section = section_classes().get(".".join(parents)) if parents else Config
    siblings = list(section.model_fields) if section else []
    keys = [row.key for row in field_rows()]
    elsewhere = [other for other in keys if other.endswith(f".{name}")]
    meant = difflib.get_close_matches(name, siblings, n=1) or elsewhere or difflib.get_close_matches(key, keys, n=1)
    if not meant and siblings:
        return f"unknown key {key} (known here: {', '.join(siblings)})"
    return f"unknown key {key}{_did_you_mean(meant)}"


def _did_you_mean(names: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def _dotted(loc: Sequence[int | str]) -> str:
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in loc).removeprefix(".")


def show(value: object) -> str:
    """The value in at most 80 characters; true, false and null as YAML has them."""
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
