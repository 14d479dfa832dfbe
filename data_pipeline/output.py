"""The folder a build writes into: held by one build at a time, and never looking complete before it is."""

import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.durable import PARTIAL, fsync_folder, write_folder, write_whole, writing
from data_pipeline.errors import DataError, UserError
from data_pipeline.layout import SPLITS
from data_pipeline.manifest import MANIFEST_NAME, TOKEN_COUNTS_NAME, TOKENIZER_FOLDER, load_manifest
from data_pipeline.tokenizer import TokenizerFolder

REPORT_NAME = "report.json"
REQUEST_NAME = "build.json"  # what was asked for: inputs, settings, tokenizer
WORK = ".build"  # what is done so far; removed when the data set is complete
RANGES, DUPLICATES, SHARDS = "ranges", "duplicates", "shards"  # folders in it
# Stays in the folder: were it removed, two builds could hold locks on two files of the same name.
LOCK_NAME = ".lock"
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")
_FIXED_NAMES = {MANIFEST_NAME, REPORT_NAME, REQUEST_NAME, TOKEN_COUNTS_NAME, TOKENIZER_FOLDER, WORK, "plans"}
_NAMED = 5  # inputs that differ
_SHOWN_CHARACTERS = 100  # of a setting that differs


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the folder for this build alone, making it when missing.

    Raises UserError when another build holds it, when it has files of another kind, when the system refuses.
    """
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        foreign = [path.name for path in directory.iterdir() if not _is_ours(path.name) and path.name != LOCK_NAME]
        if foreign:
            raise UserError(f"{directory}: holds {foreign[0]!r}, which is no part of a data set; give an empty folder")
        lock = (directory / LOCK_NAME).open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{directory}: another build is writing here; wait, or give another --output") from error
        yield


def has_manifest(directory: Path) -> bool:
    """Whether a finished data set lies in the folder."""
    return (directory / MANIFEST_NAME).exists()


def is_begun(directory: Path) -> bool:
    """Whether a build began in the folder, finished or not."""
    return (directory / REQUEST_NAME).exists()


def begin(directory: Path, request: Mapping[str, Any], tokenizer: TokenizerFolder) -> None:
    """Make the folder ready for a build from the start; the request comes last, so that it is begun or not."""
    remove_data_set(directory)
    write_folder(directory / TOKENIZER_FOLDER, tokenizer.files)
    with writing(directory):
        for name in (RANGES, DUPLICATES, SHARDS):
            (directory / WORK / name).mkdir(parents=True)
    write_whole(directory / REQUEST_NAME, (json.dumps(request, indent=1) + "\n").encode())


def load_request(directory: Path) -> dict[str, Any]:
    """What `begin` wrote. DataError when it is damaged."""
    path = directory / REQUEST_NAME
    try:
        request: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read: {error}; --restart builds the data set anew") from error
    return request


def refuse_other_request(directory: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """UserError naming what differs between the request of the build in the folder and this one."""
    differences = [
        *_changed_inputs(before["inputs"], now["inputs"]),
        *_changed_settings(before["settings"], now["settings"]),
    ]
    if differences:
        kind = "built" if has_manifest(directory) else "begun"
        raise UserError(
            f"{directory}: {kind} with other inputs or settings: {'; '.join(differences)}; "
            "give the same again, or --restart to remove it and begin anew"
        )


def already_built(directory: Path) -> str:
    """A sentence on the finished data set in the folder; UserError when shards are missing."""
    manifest = load_manifest(directory)
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        path = directory / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path}: missing or of another size than the manifest says; --restart builds it anew")
    return f"Data set {manifest.identity[:12]} was complete already in {directory}; nothing to do."


def remove_work(directory: Path) -> None:
    """Remove what only a build that goes on needs."""
    with writing(directory):
        if (directory / WORK).exists():
            shutil.rmtree(directory / WORK)


def remove_data_set(directory: Path) -> None:
    """Remove what a build writes; at no moment does the folder look complete, or begun, and is not."""
    with writing(directory):
        for name in (MANIFEST_NAME, REQUEST_NAME):
            (directory / name).unlink(missing_ok=True)
            fsync_folder(directory)
        for path in [path for path in directory.iterdir() if _is_ours(path.name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_ours(name: str) -> bool:
    name = name.removesuffix(PARTIAL)
    return name in _FIXED_NAMES or SHARD_NAME.fullmatch(name) is not None


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """What differs, a key inside another one as "outer.inner"."""
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _changed_settings(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {_short(old)}, is now {_short(new)}"


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def _changed_inputs(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> Iterator[str]:
    """What differs, file by file, up to _NAMED of them."""
    old, new = ({(entry["source"], entry["name"]): entry for entry in entries} for entries in (before, now))
    changes = [f"{key[1]} is gone" for key in old if key not in new]
    changes += [f"{key[1]} is new" for key in new if key not in old]
    both = [(key[1], _change(old[key], entry)) for key, entry in new.items() if key in old]
    changes += [f"{name} {change}" for name, change in both if change]
    if not changes and list(old) != list(new):
        changes = ["the same inputs in another order"]
    yield from changes[:_NAMED]
    if len(changes) > _NAMED:
        yield f"{len(changes) - _NAMED:,} more inputs differ"


def _change(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How a file differs: by size, by content where both hashes are known, else by the time of the last change."""
    if before["bytes"] != now["bytes"]:
        return f"has {now['bytes']:,} bytes, had {before['bytes']:,}"
    if before.get("checksum") and now.get("checksum"):
        return "" if before["checksum"] == now["checksum"] else "has another content"
    return "" if before["modified_ns"] == now["modified_ns"] else "was modified since"
