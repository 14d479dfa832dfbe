"""A WebDataset without our manifest: what can be said of its shards by reading them once.

A sample is what webdataset takes for one: consecutive members with the same name up to the first dot. Its members are
told apart by the rest of the name, the kind ("ids.npy"). Every .npy member is taken for a flat array of ids.
"""

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from data_pipeline.checks.checking import SHOWN_PROBLEMS, bar
from data_pipeline.checks.tars import NAMES, Member, walk
from data_pipeline.durable import PARTIAL
from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import MANIFEST_NAME
from data_pipeline.output import LOCK_NAME, WORK
from data_pipeline.parallel import map_in_order
from data_pipeline.report import counted, megabytes

NPY, JSON = ".npy", ".json"
# Formats that hold a pickle, or may: to open one is to run the code in it.
_PICKLES = (".pyd", ".pickle", ".pkl", ".pth", ".pt", ".npz", ".joblib")
_UNFINISHED = (WORK, LOCK_NAME)  # beside shards without a manifest: of a build that did not end
_SAMPLE = re.compile(r"((?:.*/|)[^.]+)\.([^/]+)", re.DOTALL)
_META = re.compile(r"__[^/]*__(?:/|$)")  # webdataset passes over such members


@dataclass(slots=True)
class Kind:
    """The members of one kind: number, bytes, and what their arrays hold."""

    members: int = 0
    bytes: int = 0
    elements: int = 0
    dtypes: set[str] = field(default_factory=set)
    low: int | None = None  # smallest and largest element
    high: int | None = None

    def add(self, other: "Kind") -> None:
        """Take in what is known of more members."""
        self.members += other.members
        self.bytes += other.bytes
        self.elements += other.elements
        self.dtypes |= other.dtypes
        self.low = min((n for n in (self.low, other.low) if n is not None), default=None)
        self.high = max((n for n in (self.high, other.high) if n is not None), default=None)


@dataclass(slots=True)
class Shard:
    """What one shard holds, and the first SHOWN_PROBLEMS things that are wrong with it, a line each."""

    path: Path
    bytes: int = 0
    samples: int = 0
    without_key: int = 0  # members that belong to no sample: no dot in the name
    kinds: dict[str, Kind] = field(default_factory=dict)
    first_kinds: tuple[str, ...] = ()  # of the first sample
    problems: list[str] = field(default_factory=list)
    more_problems: int = 0

    def report(self, line: str) -> None:
        """Add a problem."""
        if len(self.problems) < SHOWN_PROBLEMS:
            self.problems.append(line)
        else:
            self.more_problems += 1


@dataclass(slots=True)
class Totals:
    """What all shards hold together."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    problems: int = 0
    kinds: dict[str, Kind] = field(default_factory=dict)

    def add(self, shard: Shard) -> None:
        """Take in one more shard."""
        self.shards += 1
        self.samples += shard.samples
        self.bytes += shard.bytes
        self.problems += len(shard.problems) + shard.more_problems
        for name, kind in shard.kinds.items():
            self.kinds.setdefault(name, Kind()).add(kind)

    def __str__(self) -> str:
        return f"{counted(self.shards, 'shard')}, {counted(self.samples, 'sample')}, {megabytes(self.bytes)}"


def foreign_shards(path: Path) -> list[Path]:
    """The .tar files (.tar.gz, .tgz) of a folder that has no manifest.json, or the one given; else none.

    Raises UserError for another file, and for a folder in which a build of ours did not end.
    """
    if path.is_file():
        if not path.name.endswith(NAMES):
            raise UserError(f"{path}: a file; give the folder of a data set, or a {', '.join(NAMES)} file")
        return [path]
    if not path.is_dir() or (path / MANIFEST_NAME).exists():
        return []
    traces = [p.name for p in sorted(path.iterdir()) if p.name in _UNFINISHED or p.name.endswith(f".tar{PARTIAL}")]
    if traces:
        raise UserError(
            f"{path}: no {MANIFEST_NAME} but {traces[0]}, so a build that has not finished; "
            "wait for it, or run the same build again"
        )
    return sorted(p for p in path.iterdir() if p.name.endswith(NAMES) and not p.is_dir())


def check_shards(paths: list[Path], workers: int, command: str) -> Iterator[Shard]:
    """The shards, read to their ends, in the order of `paths`, whatever the number of `workers` (processes).

    Memory for each worker: a member and about 100 bytes a sample of its shard. `command` names the bar on a terminal.
    Raises UserError when a worker process is killed.
    """
    found = map_in_order(_shard_checker, (), paths, max(1, min(workers, len(paths))))
    first: tuple[str, ...] = ()
    with bar(command, sum(map(_size, paths))) as add:
        for shard in found:
            first = first or shard.first_kinds
            if shard.samples and shard.first_kinds != first:
                shard.report(f"{shard.path}: samples of {_named(shard.first_kinds)}, the first shard's {_named(first)}")
            add(shard.bytes)
            yield shard


def problems(shard: Shard) -> Iterator[str]:
    """What is wrong with the shard, a line each, in the end how many lines were left out."""
    yield from shard.problems
    if shard.more_problems:
        yield f"{shard.path}: and {counted(shard.more_problems, 'more problem')}"


def sentence(shard: Shard) -> str:
    """What the shard holds."""
    without = f", {counted(shard.without_key, 'member')} of no sample" if shard.without_key else ""
    kinds = "; ".join(kind_sentence(name, kind) for name, kind in sorted(shard.kinds.items()))
    return f"{shard.path}: {counted(shard.samples, 'sample')}, {megabytes(shard.bytes)}{without}: {kinds or 'nothing'}."


def kind_sentence(name: str, kind: Kind) -> str:
    """The members of a kind in a few words."""
    text = f".{_shown(name)} {kind.members:,} x, {megabytes(kind.bytes)}"
    if is_pickle(name):
        return f"{text}, not opened: pickle may run code"
    if not kind.dtypes:
        return text
    between = "" if kind.low is None else f", {kind.low:,} to {kind.high:,}"
    return f"{text}, {' '.join(sorted(kind.dtypes))}, {counted(kind.elements, 'element')}{between}"


def closing_sentence(total: Totals) -> str:
    """What was seen of a data set without a problem, and what cannot be seen."""
    return (
        f"As far as can be seen without a manifest: {total}, all can be read to the end. Not checked: checksums (a "
        "changed id looks like any other), missing shards, the tokenizer (whether it has these ids), document bounds."
    )


def sample_name(name: str) -> tuple[str, str] | None:
    """Key and kind of a member as webdataset takes them; None for what belongs to no sample."""
    found = None if _META.search(name) else _SAMPLE.fullmatch(name)
    return (found[1], found[2].lower()) if found else None


def is_pickle(kind: str) -> bool:
    """Whether a member of this kind must not be opened."""
    return f".{kind}".endswith(_PICKLES)


def read_array(content: bytes) -> npt.NDArray[Any]:
    """The array of a .npy member. Raises DataError when it is not a flat one of integers, whole and alone."""
    stream = io.BytesIO(content)
    try:
        array: npt.NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # numpy promises no kind of error for a damaged header
        raise DataError(f"no readable array: {error}") from error
    if array.ndim != 1 or array.dtype.kind not in "iub":
        raise DataError(f"{array.dtype}{list(array.shape)}, not a flat array of integers")
    if stream.tell() != len(content):
        raise DataError(f"{len(content) - stream.tell():,} bytes follow the array")
    return array


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _shard_checker() -> Callable[[Path], Shard]:
    return _check_shard


def _check_shard(path: Path) -> Shard:
    shard = Shard(path, _size(path))
    keys: set[int] = set()
    key: str | None = None
    kinds: list[str] = []
    for member in walk(path, lambda name: name.lower().endswith((NPY, JSON)), shard.report):
        named = sample_name(member.name)
        if named is None:
            shard.without_key += 1
            continue
        if named[0] != key:
            _end_sample(shard, key, kinds)
            key, kinds = named[0], []
            _begin_sample(shard, key, keys)
        kinds.append(named[1])
        _check_member(shard, member, named[1])
    _end_sample(shard, key, kinds)
    if not shard.samples and not shard.problems:
        shard.report(f"{path}: no samples")
    return shard


def _begin_sample(shard: Shard, key: str, keys: set[int]) -> None:
    shard.samples += 1
    digest = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogateescape"))
    if digest in keys:
        shard.report(f"{shard.path}: sample {key!r} stands here twice, apart")
    keys.add(digest)


def _end_sample(shard: Shard, key: str | None, kinds: list[str]) -> None:
    """Compare the kinds of a sample with those of the first."""
    if key is None:
        return
    if len(set(kinds)) != len(kinds):
        twice = next(kind for kind in kinds if kinds.count(kind) > 1)
        shard.report(f"{shard.path}: sample {key!r} has .{_shown(twice)} twice, which webdataset refuses")
    found = tuple(sorted(set(kinds)))
    shard.first_kinds = shard.first_kinds or found
    if found != shard.first_kinds:
        shard.report(f"{shard.path}: sample {key!r} has {_named(found)}, the first one {_named(shard.first_kinds)}")


def _check_member(shard: Shard, member: Member, kind: str) -> None:
    found = Kind(members=1, bytes=member.size)
    try:
        if member.content is not None and f".{kind}".endswith(NPY):
            _check_ids(member.content, found)
        elif member.content is not None:
            _check_json(member.content)
    except DataError as error:
        shard.report(f"{shard.path}: {member.name!r} at byte {member.position:,}: {error}")
    shard.kinds.setdefault(kind, Kind()).add(found)


def _check_ids(content: bytes, found: Kind) -> None:
    ids_T = read_array(content)
    found.elements, found.dtypes = ids_T.size, {ids_T.dtype.name}
    if ids_T.size:
        found.low, found.high = int(ids_T.min()), int(ids_T.max())
    if found.low is not None and found.low < 0:
        raise DataError(f"negative: {found.low} at position {int(ids_T.argmin()):,}")


def _check_json(content: bytes) -> None:
    try:
        json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"not JSON: {error}") from error


def _named(kinds: tuple[str, ...]) -> str:
    return " ".join(f".{_shown(kind)}" for kind in kinds)


def _shown(name: str) -> str:
    """A name without what a terminal might obey."""
    return name if name.isprintable() else repr(name)[1:-1]
