"""What the folders of checkpoints say without their tensors: names, manifests, and whether each is whole."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

MANIFEST = "manifest.json"
STATE = "state.json"
FORMAT, VERSION = "bertmae-checkpoint", 1
_NAME = re.compile(r"step-\d{8,}")
_READ_BYTES = 1 << 24


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint folder, or None: every file is there with its size and checksum."""
    return next(damages(path), None)


def damages(path: Path, *, checksums: bool = True) -> Iterator[str]:
    """A sentence for each damaged file of a checkpoint folder; without `checksums` the sizes alone are compared."""
    try:
        manifest = read_json(path / MANIFEST)
        if (manifest["format"], manifest["version"]) != (FORMAT, VERSION):
            yield f"{MANIFEST} says {manifest['format']} version {manifest['version']}, not {FORMAT} {VERSION}"
            return
        for name, expected in manifest["files"].items():
            if damage := _damage(path / name, expected["bytes"], expected["checksum"] if checksums else None):
                yield damage
    except OSError as error:
        yield f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{MANIFEST} is damaged ({type(error).__name__}: {error})"


def committed(folder: Path) -> Iterator[Path]:
    """Folders with a checkpoint's name; copies that people made under other names are theirs."""
    return (path for path in folder.glob("step-*") if _NAME.fullmatch(path.name))


def half_done(folder: Path) -> list[Path]:
    """Temporary folders: what a killed process left half-written or half-removed."""
    return sorted([*folder.glob(".step-*.partial"), *folder.glob(".step-*.damaged")])


def named(folder: Path, pointer: str) -> str | None:
    """The folder's name that `latest` or `best` holds, or None where there is no such readable file."""
    try:
        return (folder / pointer).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises OSError, ValueError and TypeError, as the file is."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise TypeError(f"{path.name} is no object")
    return value


def _damage(path: Path, size: int, checksum: str | None) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found} bytes instead of {size}"
        if checksum is not None and checksum_of(path) != checksum:
            return f"{path.name} does not match its checksum"
    except OSError as error:
        return f"{path.name}: {error.strerror}"
    return None


def checksum_of(path: Path) -> str:
    """Of a file's bytes, as manifests have it: XXH3 of 128 bits, in hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
