"""How inputs are cut into spans, the parts that are read independently of each other."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from data_pipeline.formats import Stretch, has_stretches
from data_pipeline.inputs import Input
from data_pipeline.sources import Reading, Unit, file_units, part_units

SPAN_BYTES = 32 << 20  # of input at most, where it can be cut
LEAST_SPAN_BYTES = 1 << 20
_FEW = 256  # spans: small inputs are cut finer, so that every worker has some


@dataclass(frozen=True, slots=True)
class Span:
    """Small files of one source, one large file, the lines of a stretch of one, or a part of an input of `datasets`."""

    inputs: tuple[Input, ...]
    stretch: Stretch | None = None
    part: int | None = None

    @property
    def source(self) -> str:
        """The name of the source that all of it comes from."""
        return self.inputs[0].source

    @property
    def bytes(self) -> int:
        """Of the input, as it lies on the disk."""
        return self.stretch.stop - self.stretch.start if self.stretch else sum(entry.size for entry in self.inputs)


def span_bytes(inputs: Sequence[Input]) -> int:
    """How large spans are to be, for inputs of this size in all."""
    return min(SPAN_BYTES, max(LEAST_SPAN_BYTES, sum(entry.size for entry in inputs) // _FEW))


def cut(inputs: Sequence[Input], size: int, txt_documents: str) -> Iterator[Span]:
    """The spans in the order of the inputs, of about `size` bytes where files can be cut or put together."""
    for _, of_source in groupby(inputs, key=lambda entry: entry.source):
        small: list[Input] = []
        filled = 0
        for entry in of_source:
            large = entry.size >= size or entry.parts > 0
            if small and (large or filled >= size):
                yield Span(tuple(small))
                small, filled = [], 0
            if large:
                yield from _of_large(entry, size, txt_documents)
            else:
                small.append(entry)
                filled += entry.size
        if small:
            yield Span(tuple(small))


def span_units(span: Span, reading: Reading) -> Iterator[tuple[int, Unit]]:
    """(number of the file in the span, unit) for all of it in order."""
    if span.part is not None:
        yield from ((0, unit) for unit in part_units(span.inputs[0], reading, span.part))
        return
    for number, entry in enumerate(span.inputs):
        yield from ((number, unit) for unit in file_units(entry, reading, span.stretch))


def _of_large(entry: Input, size: int, txt_documents: str) -> Iterator[Span]:
    if entry.parts:
        yield from (Span((entry,), part=part) for part in range(entry.parts))
    elif not has_stretches(entry.path, txt_documents):
        yield Span((entry,))
    else:
        for start in range(0, entry.size, size):
            yield Span((entry,), Stretch(start, min(start + size, entry.size)))
