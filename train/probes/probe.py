"""What a probe is: texts whose vectors are asked for, and a measure of those vectors.

Legend: N texts, D width.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import xxhash

Vectors = npt.NDArray[np.float32]
POOLINGS = ("cls", "mean")  # the last state of [CLS], and the mean of the last states of all tokens
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Probe:
    """One data set. `measure` gives a number for vectors [N, D] of the texts, higher is better."""

    name: str
    metric: str
    texts: Sequence[str]
    measure: Callable[[Vectors], float]
    trivial: float = 0.0  # what knowing nothing gives
    words: str = ""  # how much was taken of what is there


@dataclass(frozen=True, slots=True)
class Found:
    """The measures of one probe by pooling; NaN where the vectors were not finite."""

    probe: Probe
    values: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, float]:
        """As metrics of a run: "probe_NAME_POOLING_METRIC"."""
        return {f"probe_{self.probe.name}_{pool}_{self.probe.metric}": value for pool, value in self.values.items()}


def measured(probe: Probe, vectors: dict[str, Vectors]) -> Found:
    """The probe's measure of the vectors of each pooling."""
    found = Found(probe)
    for pooling, vectors_ND in vectors.items():
        finite = bool(np.isfinite(vectors_ND).all())
        found.values[pooling] = probe.measure(vectors_ND) if finite else float("nan")
    return found


def chosen(items: Sequence[_Item], most: int, name: str) -> list[_Item]:
    """At most so many of the items, in their order: the same ones on every machine, and spread over all, because files
    are often sorted by label or by source."""
    if len(items) <= most:
        return list(items)
    return [items[number] for number in sorted(shuffled(len(items), name)[:most])]


def shuffled(count: int, name: str) -> list[int]:
    """The numbers below `count` in the order of a hash."""
    return sorted(range(count), key=lambda number: xxhash.xxh3_64_intdigest(f"{name}/{number}".encode()))


def unit(vectors_ND: Vectors) -> npt.NDArray[np.float64]:
    """The vectors scaled to length 1, so that products are cosines; a vector of zeros stays one."""
    wide_ND = vectors_ND.astype(np.float64)
    lengths_N1: npt.NDArray[np.float64] = np.maximum(np.linalg.norm(wide_ND, axis=1, keepdims=True), 1e-12)
    return wide_ND / lengths_N1


@contextmanager
def silent() -> Iterator[None]:
    """Libraries warn of what a young model is: constant vectors, a fit that is not at its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
