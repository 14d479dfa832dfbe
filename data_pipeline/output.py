"""The folder a build writes into: held by one build at a time, and never looking complete before it is."""

import fcntl
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.durable import PARTIAL, fsync_folder, writing
from data_pipeline.errors import UserError
from data_pipeline.manifest import MANIFEST_NAME, TOKEN_COUNTS_NAME, TOKENIZER_FOLDER, load_manifest

SPLITS = ("train", "validation")
REPORT_NAME = "report.json"
# Stays in the folder: were it removed, two builds could hold locks on two files of the same name.
LOCK_NAME = ".lock"
SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{6,}}\.tar")
_FIXED_NAMES = {MANIFEST_NAME, REPORT_NAME, TOKEN_COUNTS_NAME, TOKENIZER_FOLDER}


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


def already_built(directory: Path, settings: Mapping[str, Any], tokenizer_checksum: str) -> str:
    """A sentence when the folder holds just this data set; UserError naming what differs when it holds another."""
    manifest = load_manifest(directory)
    before = {**manifest.settings, "tokenizer": manifest.tokenizer_checksum}
    now = {**settings, "tokenizer": tokenizer_checksum}
    differences = [_difference(key, before.get(key), now[key]) for key in now if before.get(key) != now[key]]
    if differences:
        raise UserError(f"{directory}: built with other settings: {'; '.join(differences)}; --restart builds it anew")
    for shard in (shard for split in manifest.splits.values() for shard in split.shards):
        path = directory / shard.name
        if not path.is_file() or path.stat().st_size != shard.bytes:
            raise UserError(f"{path}: missing or of another size than the manifest says; --restart builds it anew")
    return f"Data set {manifest.identity[:12]} was complete already in {directory}; nothing to do."


def remove_data_set(directory: Path) -> None:
    """Remove what a build writes, the manifest first: at no moment does the folder look complete and is not."""
    with writing(directory):
        (directory / MANIFEST_NAME).unlink(missing_ok=True)
        fsync_folder(directory)
        for path in [path for path in directory.iterdir() if _is_ours(path.name)]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def _is_ours(name: str) -> bool:
    name = name.removesuffix(PARTIAL)
    return name in _FIXED_NAMES or SHARD_NAME.fullmatch(name) is not None


def _difference(key: str, before: Any, now: Any) -> str:
    if key == "inputs" and isinstance(before, list):
        changed = [entry["name"] for entry in now if entry not in before]
        return f"inputs (new or changed: {', '.join(changed)})" if changed else "inputs (fewer, or in another order)"
    return f"{key} was {before!r}, is now {now!r}"
