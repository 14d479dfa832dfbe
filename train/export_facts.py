"""What is known of an exported model: run, step, data, losses. bertmae.json of an export holds it, for tools."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xxhash

from train.config import Config
from train.monitor.metrics import newest_first

IDENTITY = "bertmae.json"
_FORMAT, _VERSION = "bertmae-export", 1
_LOSSES_OF = 100  # steps over which the loss of training is averaged: that of one step is noise
_LANGUAGE_SHARE = 0.1  # of the sampled documents: fewer are quotations, or the detector's mistakes
_READ_BYTES = 1 << 24
_MEASURES = ("validation", "probe")  # what names of metrics begin with


def export_facts(
    folder: Path, run: Path, config: Config, state: Mapping[str, Any], averaged: Sequence[int] = ()
) -> dict[str, Any]:
    """What there is to say of the weights in `folder`, which were trained in `run`.

    `state` is that of the checkpoint, the newest one where the weights are the mean of those of the steps `averaged`.
    Raises OSError.
    """
    facts: dict[str, Any] = {
        "format": _FORMAT,
        "version": _VERSION,
        "run": Path(config.run.directory).name,
        "step": state["step"],
        "tokens_seen": state["tokens_seen"],
        "objective": config.objective.name,
        "model_type": config.model.encoder.model_type,
        "seed": config.run.seed,
        "data": _data(config, state.get("data", {})),
        "code": state.get("code", "unknown"),
        "versions": state.get("versions", {}),
        "weights": f"xxh3_128:{_checksum(folder / 'model.safetensors')}",
    }
    if averaged:
        facts["averaged_steps"] = list(averaged)
    return facts | measured(run / "metrics.jsonl", state["step"], config.validation.interval_steps)


def _data(config: Config, data: Mapping[str, Any]) -> dict[str, Any]:
    """Where the documents came from, as the configuration names them, with what identifies them in the checkpoint."""
    names = [config.data.path] if config.data.path else [source.path for source in config.data.sources]
    identities = data.get("sources") or [data.get("data_identity", "unknown")]
    weights = [source.weight for source in config.data.sources] or [1.0]
    rows = zip(names, identities, weights, strict=False)
    sets = [{"path": name, "identity": identity, "weight": weight} for name, identity, weight in rows]
    languages = sorted({code for entry in sets for code in _languages(Path(entry["path"]), entry["identity"])})
    return {"sets": sets, "languages": languages, **{key: data[key] for key in ("epoch",) if key in data}}


def _languages(data: Path, identity: str) -> list[str]:
    """The languages of a data set, where its report is at hand and still that of the same shards."""
    try:
        if not _sha256(data / "manifest.json").startswith(identity):
            return []
        counts = json.loads((data / "report.json").read_bytes())["languages_of_sample"]
        total = sum(counts.values())
        return [code for code, count in counts.items() if code != "und" and count >= _LANGUAGE_SHARE * total]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []  # not on this machine: nothing is known, and nothing is said


def measured(metrics: Path, step: int, back: int) -> dict[str, Any]:
    """What a run's metrics.jsonl says of `step`: means over the last steps, and the last validation and probes that are
    no more than `back` steps older."""
    recent: list[Mapping[str, Any]] = []
    last: dict[str, Mapping[str, Any]] = {}
    for record in newest_first(metrics):
        if record["step"] <= step - max(back, _LOSSES_OF):
            break
        if record["step"] > step:
            continue
        if len(recent) < _LOSSES_OF:
            recent.append(record)
        for kind in _MEASURES:
            if kind not in last and _under(kind, record):
                last[kind] = record
    facts: dict[str, Any] = {"training": {"steps": len(recent), **_means(recent)}} if recent else {}
    measures = {kind: {"step": record["step"], **_under(kind, record)} for kind, record in last.items()}
    return facts | measures


def _means(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Of every loss; a step that had none, or none that is finite, does not count."""
    names = sorted({name for record in records for name in record if name == "loss" or name.endswith("_loss")})
    values = {name: [r[name] for r in records if r.get(name) is not None] for name in names if "validation" not in name}
    return {name: round(math.fsum(found) / len(found), 5) for name, found in values.items() if found}


def _under(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
    """The measures of a record whose names begin with a kind, without it; how long they took is none."""
    names = [name for name in record if name.startswith(f"{kind}_") and "_seconds" not in name]
    return {name.removeprefix(f"{kind}_"): record[name] for name in names if record[name] is not None}


def _checksum(path: Path) -> str:
    return _digest(xxhash.xxh3_128(), path)


def _sha256(path: Path) -> str:
    return _digest(hashlib.sha256(), path)


def _digest(digest: Any, path: Path) -> str:
    with path.open("rb") as file:
        while chunk := file.read(_READ_BYTES):
            digest.update(chunk)
    return str(digest.hexdigest())
