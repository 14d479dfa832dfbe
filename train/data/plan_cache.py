"""Owns packing plans on disk: made once, beside the shards or in a cache folder, and mapped by every rank.

A plan is one safetensors file of four arrays; its metadata say what it was made from. It exists whole or not at all.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash
from safetensors import SafetensorError
from safetensors.numpy import save_file

from data_pipeline.durable import fsync_folder
from data_pipeline.errors import DataError
from data_pipeline.manifest import Manifest, canonical_json
from train.data.packing import PACKING_VERSION, PackingRules, RowPlan, content_digest, plan_rows, readable
from train.data.remote import BlockStore
from train.monitor.logs import log

FOLDER = "plans"
_ARRAYS = {"rows_B": "I64", "row_pieces_R1": "I64", "piece_start_P": "U32", "piece_length_P": "U16"}
_DTYPES: dict[str, np.dtype[Any]] = {"I64": np.dtype("<i8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2")}


def open_plan(manifest: Manifest, split: str, rules: PackingRules, store: BlockStore | None = None) -> RowPlan:
    """The plan beside the shards where there is a whole one, else a plan in memory; writes nothing."""
    path = manifest.directory / FOLDER / _name(manifest, split, rules)
    plan = _load_whole(path, manifest, split, rules)
    return plan or plan_rows(manifest, split, rules, store=store)


def store_plan(
    manifest: Manifest,
    split: str,
    rules: PackingRules,
    cache: Path,
    wanted: str | None = None,
    store: BlockStore | None = None,
) -> tuple[str, str]:
    """(path, digest) of the plan, whose file is made where there is none: beside the shards, or else in `cache`.

    The path is empty where neither folder can be written. A stored plan that holds places for blocks which can be
    read by now is made anew, unless its digest is `wanted` by a run that goes on. Raises UserError as `plan_rows` does.
    """
    rules.check()
    name = _name(manifest, split, rules)
    paths = [manifest.directory / FOLDER / name, cache.expanduser() / FOLDER / name]
    for path in paths:
        plan = _load_whole(path, manifest, split, rules)
        if plan is not None and (plan.digest == wanted or not _is_outdated(plan, manifest, split, path, store)):
            return str(path), plan.digest
    plan = plan_rows(manifest, split, rules, store=store)
    return next((str(path) for path in paths if _write(plan, manifest, split, path)), ""), plan.digest


def load_plan(
    path: str, digest: str, manifest: Manifest, split: str, rules: PackingRules, store: BlockStore | None = None
) -> RowPlan:
    """The plan that `store_plan` of another rank left at `path`, mapped; made here where this node does not see it.

    Raises DataError where that plan is another one, as it would be where nodes see different shards.
    """
    try:
        plan = _map(Path(path), manifest, split, rules)
    except (OSError, DataError) as error:
        if path:
            log.warning("%s: not used here (%s); this rank makes the packing plan itself.", path, error)
        plan = plan_rows(manifest, split, rules, store=store)
    if plan.digest != digest:
        raise DataError(
            f"{manifest.directory}: this node sees other documents in the {split} shards than rank 0 does; "
            "run `python -m data_pipeline verify` on both"
        )
    return plan


def _is_outdated(plan: RowPlan, manifest: Manifest, split: str, path: Path, store: BlockStore | None) -> bool:
    blocks = {block for block, _ in plan.unread}
    outdated = bool(blocks) and readable(manifest, split, blocks, store)
    if outdated:
        log.warning("%s: made while blocks could not be read that can be read now; it is made anew.", path)
    return outdated


def _key(manifest: Manifest, split: str, rules: PackingRules) -> dict[str, Any]:
    """What decides the plan of a data set."""
    return {"identity": manifest.identity, "split": split, "packing_version": PACKING_VERSION, **asdict(rules)}


def _name(manifest: Manifest, split: str, rules: PackingRules) -> str:
    key = xxhash.xxh3_64_hexdigest(canonical_json(_key(manifest, split, rules)))
    return f"{split}-{rules.sequence_length}-{key}.safetensors"


def _write(plan: RowPlan, manifest: Manifest, split: str, path: Path) -> bool:
    """Whether the plan could be written; a folder that takes no files is no mistake."""
    description = {**_key(manifest, split, plan.rules), "tokens": plan.tokens, "unread": plan.unread}
    metadata = {"plan": canonical_json({**description, "digest": plan.digest}).decode()}
    arrays = {name: np.ascontiguousarray(getattr(plan, name)) for name in _ARRAYS}
    temporary = Path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: two runs may make the same plan at the same time, on two nodes.
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".partial", delete=False) as file:
            temporary = Path(file.name)
        save_file(arrays, temporary, metadata)  # puts another file in its place, which its owner alone may read
        temporary.chmod(0o644)
        with temporary.open("rb") as whole:
            os.fsync(whole.fileno())
        temporary.rename(path)
        fsync_folder(path.parent)
    except (OSError, SafetensorError) as error:
        if temporary.name:
            temporary.unlink(missing_ok=True)
        log.info("%s: the packing plan is not kept there (%s).", path, getattr(error, "strerror", None) or error)
        return False
    return True


def _load_whole(path: Path, manifest: Manifest, split: str, rules: PackingRules) -> RowPlan | None:
    """The plan at `path` if it is there and every byte is as it was written."""
    try:
        plan = _map(path, manifest, split, rules)
        if plan.digest != content_digest(**{name: getattr(plan, name) for name in _ARRAYS}):
            raise DataError("its content is not what its checksum says")
    except FileNotFoundError:
        return None
    except OSError as error:
        log.info("%s: the packing plan there is not used (%s).", path, error.strerror or error)
        return None
    except DataError as error:
        log.warning("%s: damaged packing plan (%s); it is made anew.", path, error)
        return None
    return plan


def _map(path: Path, manifest: Manifest, split: str, rules: PackingRules) -> RowPlan:
    """The plan as views of the mapped file. Raises OSError, and DataError for a file of another kind or content."""
    try:
        file: npt.NDArray[np.uint8] = np.memmap(path, np.uint8, "r")
        start = 8 + int.from_bytes(file[:8].tobytes(), "little")
        header = json.loads(file[8:start].tobytes())
        description = json.loads(header["__metadata__"]["plan"])
        for name, value in _key(manifest, split, rules).items():
            if description[name] != value:
                raise DataError(f"made for {name} {description[name]}, not {value}")
        arrays = {name: _array(file, start, header[name], dtype) for name, dtype in _ARRAYS.items()}
        unread = tuple((int(block), str(reason)) for block, reason in description["unread"])
        tokens, digest = int(description["tokens"]), str(description["digest"])
        plan = RowPlan(rules=rules, tokens=tokens, unread=unread, digest=digest, **arrays)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"not a plan: {error!r}") from error
    return plan


def _array(file: npt.NDArray[np.uint8], start: int, entry: Mapping[str, Any], dtype: str) -> npt.NDArray[Any]:
    begin, end = entry["data_offsets"]
    found: npt.NDArray[Any] = np.frombuffer(file[start + begin : start + end], _DTYPES[dtype])
    if entry["dtype"] != dtype or found.shape != tuple(entry["shape"]):
        raise DataError(f"an array of {entry['dtype']} {entry['shape']} in {end - begin} bytes")
    return found
