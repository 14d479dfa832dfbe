"""What happened to records and files on the way: counts by reason, each with its first few examples."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from heapq import nsmallest
from itertools import islice
from typing import Any

EXAMPLES = 3  # kept for each reason
EXAMPLE_CHARACTERS = 200
SAMPLE = 256
_COUNTERS = ("dropped", "changed", "files")


@dataclass(frozen=True, slots=True)
class Example:
    """One record or file, with what people need to find it again."""

    source: str
    file: str
    line: int  # of its start in the file, from 1; a row where the format has rows; 0 for the file as a whole
    text: str  # its first EXAMPLE_CHARACTERS characters, or why the file was skipped
    measure: str = ""  # what a filter measured

    def as_json(self) -> dict[str, Any]:
        """The example for report.json; what is empty is left out."""
        fields = {"source": self.source, "file": self.file, "line": self.line}
        fields |= {"text": self.text, "measure": self.measure}
        return {name: value for name, value in fields.items() if value}


@dataclass(slots=True)
class Notes:
    """Counts by reason: documents dropped, documents changed and kept, files skipped or given up."""

    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    sample: dict[str, str] = field(default_factory=dict)  # hash and beginning of up to SAMPLE texts, evenly drawn
    examples: dict[str, list[Example]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """All of it, for `from_json`."""
        counters = {name: dict(getattr(self, name)) for name in _COUNTERS}
        examples = {reason: [asdict(example) for example in found] for reason, found in self.examples.items()}
        return counters | {"examples": examples, "sample": self.sample}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Notes":
        """What `as_json` gave."""
        counters = {name: Counter(content[name]) for name in _COUNTERS}
        examples = {reason: [Example(**example) for example in found] for reason, found in content["examples"].items()}
        return cls(**counters, examples=examples, sample=content["sample"])

    def moved(self, lines: int) -> "Notes":
        """The same, the examples `lines` further down in their file."""
        if not lines:
            return self
        examples = {
            reason: [replace(example, line=example.line + lines if example.line else 0) for example in found]
            for reason, found in self.examples.items()
        }
        return replace(self, examples=examples)

    def add(self, counts: Counter[str], reason: str, example: Example) -> None:
        """Count one more in `counts`, which is one of this object's, and keep the example while there is room."""
        counts[reason] += 1
        kept = self.examples.setdefault(reason, [])
        if len(kept) < EXAMPLES:
            kept.append(example)

    def count(self, reason: str, number: int, examples: Iterator[Example]) -> None:
        """Count `number` more dropped documents, and take examples while there is room."""
        self.dropped[reason] += number
        kept = self.examples.setdefault(reason, [])
        kept += islice(examples, EXAMPLES - len(kept))

    def draw(self, texts: Iterable[tuple[str, str]]) -> None:
        """Take (hash, beginning of the text) into the sample: those with the lowest hashes, whatever the order."""
        self.sample = dict(nsmallest(SAMPLE, {**self.sample, **dict(texts)}.items()))

    def update(self, other: "Notes") -> None:
        """Add what comes later in the order of the input."""
        self.dropped.update(other.dropped)
        self.changed.update(other.changed)
        self.files.update(other.files)
        self.draw(other.sample.items())
        for reason, examples in other.examples.items():
            kept = self.examples.setdefault(reason, [])
            kept += examples[: EXAMPLES - len(kept)]


def excerpt(content: bytes | str) -> str:
    """The first characters of a record; bytes that are no UTF-8 are shown as \\xff."""
    if isinstance(content, str):
        return content[:EXAMPLE_CHARACTERS]
    return content[: 4 * EXAMPLE_CHARACTERS].decode(errors="backslashreplace")[:EXAMPLE_CHARACTERS]
