"""Near duplicates from staged bands and sketches: candidate pairs, the similar ones among them, and their clusters.

A pair is two document numbers (earlier, later). Documents that share a band hash make a pair each with the first of
them and with the one before: linear where thousands share one. However many pairs there are, a task holds a block of
them at a time, and of the similar ones a star a cluster.
Legend: E pairs, N documents, S minima of a sketch.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup import near
from data_pipeline.dedup.groups import Group, numbered, sketches_of
from data_pipeline.dedup.sorted_runs import (
    Files,
    Interval,
    Records,
    joined,
    read_array,
    read_interval,
    write_array,
    write_run,
)
from data_pipeline.staging import StagedRange

_BLOCK = 1 << 18  # pairs that are compared at a time: 64 MiB of sketches


class BandRun(NamedTuple):
    """Sort the hashes of one band of a group's documents that are kept so far."""

    output: Path
    group: Group
    band: int
    flags: Path


class Candidates(NamedTuple):
    """Find the pairs of one band and one interval of its hashes."""

    output: Path
    runs: Files
    interval: Interval


class Similar(NamedTuple):
    """Compare the pairs in which a group's documents are the later one."""

    output: Path
    group: Group
    candidates: tuple[Files, ...]
    ranges: Path  # .json: the paths of all ranges
    starts: Path  # .npy: the first document numbers of all ranges
    threshold: float


def write_band_run(task: BandRun) -> None:
    """A run with rows (hash, document)."""
    flags = read_array(task.flags)
    parts = []
    for path, place, ids in numbered(task.group):
        hashes = StagedRange(path)["bands_BD"][task.band]
        chosen = (flags[place] == 0) & (hashes != near.NO_BAND)
        parts.append(np.stack([hashes[chosen], ids[chosen]]))
    write_run(task.output, joined(iter(parts), 2))


def write_candidates(task: Candidates) -> None:
    """A run with rows (later, earlier), each pair once."""
    records = joined(read_interval(task.runs, task.interval), 2)
    hashes, ids = records[:, np.argsort(records[0], kind="stable")]  # documents of one hash stay in order
    write_array(task.output, _distinct(_linked(hashes, ids)))


def write_similar(task: Similar) -> None:
    """The clusters of the similar pairs as pairs, with rows (earlier, later)."""
    paths, starts = [Path(name) for name in json.loads(task.ranges.read_bytes())], np.array(read_array(task.starts))
    parts = (part for files in task.candidates for part in read_interval(files, task.group.interval()))
    stars = np.zeros((2, 0), np.uint64)
    for later, earlier in _blocks(parts):
        left, right = (_sketches(paths, starts, ids) for ids in (earlier, later))
        chosen = near.similarity(left, right) >= task.threshold
        stars = _stars(np.concatenate([stars, np.stack([earlier[chosen], later[chosen]])], axis=1))
    write_array(task.output, stars)


def clusters(similar: Files) -> Records:
    """uint64[2, N] with rows (dropped, kept): every document of a cluster but its first, sorted, and that first.

    A cluster is a connected component of the similar pairs. Memory: 16 bytes a document that is in a pair.
    """
    nodes = np.zeros(0, np.uint64)
    for path in similar.paths():
        nodes = np.union1d(nodes, np.ravel(read_array(path)))
    parents = np.arange(len(nodes))
    for path in similar.paths():
        pairs = read_array(path)
        for start in range(0, pairs.shape[1], _BLOCK):
            earlier, later = np.searchsorted(nodes, pairs[:, start : start + _BLOCK])
            _link(parents, earlier, later)
    return _hanging(nodes, parents)[::-1]


def _linked(hashes: npt.NDArray[np.uint64], ids: npt.NDArray[np.uint64]) -> Records:
    """Rows (later, earlier): each document with the first one of its hash and with the one before it."""
    if not len(ids):
        return np.zeros((2, 0), np.uint64)
    new = np.concatenate([[True], hashes[1:] != hashes[:-1]])
    first = np.flatnonzero(new)[np.cumsum(new) - 1]
    later = np.flatnonzero(~new)
    earlier = np.concatenate([ids[first[later]], ids[later - 1]])
    return np.stack([np.concatenate([ids[later], ids[later]]), earlier])


def _distinct(pairs: Records) -> Records:
    pairs = pairs[:, np.lexsort((pairs[1], pairs[0]))]
    repeated = np.zeros(pairs.shape[1], np.bool_)
    repeated[1:] = (pairs[:, 1:] == pairs[:, :-1]).all(axis=0)
    return pairs[:, ~repeated]


def _blocks(parts: Iterable[Records]) -> Iterator[Records]:
    """The pairs of many parts in blocks; those that are met in several parts mostly once."""
    held, size = [np.zeros((2, 0), np.uint64)], 0
    for part in parts:
        for start in range(0, part.shape[1], _BLOCK):
            held.append(part[:, start : start + _BLOCK])
            size += held[-1].shape[1]
            if size >= 2 * _BLOCK:
                held = [_distinct(np.concatenate(held, axis=1))]
                if held[0].shape[1] >= _BLOCK:
                    yield held.pop()
                size = sum(pairs.shape[1] for pairs in held)
    if held:
        yield _distinct(np.concatenate(held, axis=1))


def _sketches(
    paths: Sequence[Path], starts: npt.NDArray[np.int64], ids: npt.NDArray[np.uint64]
) -> npt.NDArray[np.uint8]:
    different, places = np.unique(ids, return_inverse=True)
    return sketches_of(paths, starts, different)[places]


def _stars(pairs: Records) -> Records:
    """Rows (first, other) for every document but the first one of each component of the pairs."""
    nodes, places = np.unique(pairs, return_inverse=True)
    parents = np.arange(len(nodes))
    _link(parents, *places.reshape(pairs.shape))
    return _hanging(nodes, parents)


def _hanging(nodes: npt.NDArray[np.uint64], parents: npt.NDArray[np.int64]) -> Records:
    """Rows (first, other) of what hangs on another node."""
    firsts = _roots(parents, parents)
    others = np.flatnonzero(firsts != np.arange(len(nodes)))
    return np.stack([nodes[firsts[others]], nodes[others]])


def _link(parents: npt.NDArray[np.int64], left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]) -> None:
    """Union-find of many pairs at once: the larger root hangs on the smaller one, until no pair has two roots."""
    while len(left):
        left, right = _roots(parents, left), _roots(parents, right)
        apart = left != right
        left, right = np.minimum(left, right)[apart], np.maximum(left, right)[apart]
        np.minimum.at(parents, right, left)


def _roots(parents: npt.NDArray[np.int64], nodes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    roots = parents[nodes]
    while not np.array_equal(higher := parents[roots], roots):
        roots = higher
    parents[nodes] = roots
    return roots
