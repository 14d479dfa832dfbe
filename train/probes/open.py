"""The probes that a configuration or a command line asks for, opened: every file is read and checked to its end."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from train.config import Probes, ProbeSet
from train.probes.classification import classification_probe
from train.probes.probe import Probe
from train.probes.retrieval import retrieval_probe
from train.probes.similarity import similarity_probe

OPENERS: dict[str, Callable[[str, Path, int], Probe]] = {
    "classification": classification_probe,
    "similarity": similarity_probe,
    "retrieval": retrieval_probe,
}


def open_probes(settings: Probes) -> list[Probe]:
    """Raises UserError and DataError with the place of the first mistake."""
    sets: Iterable[tuple[str, ProbeSet]] = ((kind, entry) for kind in OPENERS for entry in getattr(settings, kind))
    return [OPENERS[kind](entry.name, Path(entry.path), settings.max_texts) for kind, entry in sets]


def sentences(probes: Iterable[Probe]) -> list[str]:
    """What each probe measures, for the log."""
    return [f"Probe {probe.name}: {probe.metric}, {probe.words}." for probe in probes]
