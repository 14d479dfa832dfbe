"""What has to be the same on all ranks: the code, the libraries, the driver, the data."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
import xxhash

from train.data.data_set import DataSet
from train.distributed import Ranks
from train.errors import DataError, UserError
from train.preflight.findings import Finding, ok, place_of, warning, wrong
from train.provenance import code_version

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("torch", "deepspeed", "transformers", "numpy", "safetensors")
_CODE, _DATA = "code", "data set"
_OUR_OWN = (_CODE, _DATA)  # other numbers of these make another run; a library's do so only perhaps


def differences(ranks: Ranks, sets: Iterable[DataSet]) -> list[Finding]:
    """What is not the same on all ranks, a line each, all ranks the same lines; none where all agree."""
    facts_R = [json.loads(text) for text in ranks.gather(json.dumps(_facts(ranks, sets)))]
    return list(_compare(ranks, facts_R))


def refuse_differences(ranks: Ranks, sets: Iterable[DataSet]) -> list[str]:
    """At the start of a run: the sentences of what may differ.

    Raises DataError, on all ranks, where they read different data; UserError where they run different code.
    """
    found = differences(ranks, sets)
    for finding in found:
        if finding.level == "wrong":
            error = DataError if finding.text.startswith(_DATA) else UserError
            raise error.agreed(finding.text)
    return [finding.text for finding in found]


def sameness(ranks: Ranks, sets: Iterable[DataSet]) -> list[Finding]:
    """`differences`, or one line with the versions that all ranks have."""
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    return differences(ranks, sets) or [ok(f"code and libraries: {versions}; {code_version(_ROOT)}")]


def _facts(ranks: Ranks, sets: Iterable[DataSet]) -> dict[str, str]:
    facts = {_DATA: " ".join(data_set.manifest.identity[:12] for data_set in sets), **_versions()}
    if ranks.local_rank == 0:  # one rank of each host: it runs git and reads files
        facts[_CODE] = f"{code_version(_ROOT)} (files {_code_checksum()[:8]})"
    return facts


def _compare(ranks: Ranks, facts_R: list[dict[str, str]]) -> Iterator[Finding]:
    for name, value in facts_R[0].items():
        other = next((rank for rank, facts in enumerate(facts_R) if facts.get(name, value) != value), None)
        if other is None:
            continue
        pair = f"{name}: {value} for {place_of(ranks, 0)}, {facts_R[other][name]} for {place_of(ranks, other)}"
        if name in _OUR_OWN:
            yield wrong(f"{pair}: give every host the same {name}")
        else:
            yield warning(f"{pair}: results and speed may differ from host to host; install the same")


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}
    if torch.version.cuda is not None and torch.cuda.is_available():
        found |= {"CUDA": torch.version.cuda, "NCCL": ".".join(map(str, torch.cuda.nccl.version()))}
        found["driver"] = _driver()
    return found


def _driver() -> str:
    try:
        text = Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return "unknown"
    match = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return match[0] if match else "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


@cache
def _code_checksum() -> str:
    """Of every module that a run imports from here: a file edited on one host has the same commit."""
    checksum = xxhash.xxh3_64()
    for folder in ("train", "data_pipeline"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            checksum.update(f"{path.relative_to(_ROOT)}\0".encode() + path.read_bytes())
    return checksum.hexdigest()
