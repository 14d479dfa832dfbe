"""A pass over all staged ranges: the plan of every shard, and the counts and examples of the report.

Legend: D documents of a range, P paragraphs of a range.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.duplicates import EXACT, KEPT, NEAR
from data_pipeline.layout import SPLITS, Kept, Planner, Selection, ShardPlan, select
from data_pipeline.notes import EXAMPLES, Example, Notes
from data_pipeline.report import Tally
from data_pipeline.spans import Span
from data_pipeline.staging import StagedRange, part_of

REASONS = {EXACT: "exact duplicate", NEAR: "near duplicate"}
ONLY_REPEATED = "only repeated paragraphs"
_EXAMPLE_TOKENS = 40


@dataclass(slots=True)
class Survey:
    """The plans of all shards in order, and the counts by source."""

    plans: list[ShardPlan] = field(default_factory=list)
    tallies: dict[str, Tally] = field(default_factory=dict)


def survey(
    paths: Sequence[Path],
    spans: Sequence[Span],
    selection: Selection,
    planners: Mapping[str, Planner],
    vocabulary: Sequence[str],
) -> Survey:
    """Plan all shards from the staged ranges at `paths`, which are in the order of the input."""
    result, lines = Survey(), _Lines()
    for index, path in enumerate(paths):
        staged, part = StagedRange(path), part_of(path)
        span = spans[part.span]
        kept = select(staged, index, selection)
        tally = result.tallies.setdefault(span.source, Tally())
        before = lines.before(span, part.span, staged.lines)
        tally.notes.update(staged.notes.moved(before))
        _count(tally, staged, kept)
        _note_dropped(tally.notes, staged, kept, span, before, vocabulary)
        for number, split in enumerate(SPLITS):
            tokens_K = kept.tokens_D[kept.split_D == number]
            result.plans += planners[split].add(index, span.source, tokens_K)
    for split in SPLITS:
        result.plans += planners[split].finish()
    return result


class _Lines:
    """How many lines of a file stand before each stretch of it; spans come in order."""

    def __init__(self) -> None:
        self._before: defaultdict[Path, int] = defaultdict(int)
        self._span, self._path, self._most = -1, Path(), 0

    def before(self, span: Span, number: int, lines: int) -> int:
        """The lines before the span with this number, of which a range has lines up to `lines`."""
        if number != self._span:
            self._before[self._path] += self._most
            self._span, self._path, self._most = number, span.inputs[0].path, 0
        if span.stretch is None and span.part is None:
            return 0
        self._most = max(self._most, lines)
        return self._before[self._path]


def _count(tally: Tally, staged: StagedRange, kept: Kept) -> None:
    """Add the documents that stay."""
    stays = kept.stays_P
    lengths, documents = np.unique(kept.tokens_D[kept.split_D >= 0], return_counts=True)
    for length, count in zip(lengths.tolist(), documents.tolist(), strict=True):
        tally.lengths[length] += count
    tally.text_bytes += int(staged["bytes_P"][stays].sum(dtype=np.int64))
    tally.words += int(staged["words_P"][stays].sum(dtype=np.int64))
    tally.unknown += int(staged["unknown_P"][stays].sum(dtype=np.int64))
    kept_P = np.repeat(kept.reasons_D == KEPT, staged["paragraphs_D"])
    tally.repeated_paragraphs += int(np.count_nonzero(kept_P & ~stays))


def _note_dropped(
    notes: Notes, staged: StagedRange, kept: Kept, span: Span, lines: int, vocabulary: Sequence[str]
) -> None:
    """Count the documents that duplicates or their paragraphs cost, with a few examples."""
    only_repeated_D = (kept.reasons_D == KEPT) & (kept.split_D < 0)
    for reason, dropped_D in [
        *((name, kept.reasons_D == code) for code, name in REASONS.items()),
        (ONLY_REPEATED, only_repeated_D),
    ]:
        dropped = np.flatnonzero(dropped_D)
        if len(dropped):
            notes.dropped[reason] += len(dropped)
        examples = notes.examples.get(reason, [])
        for document in dropped[: EXAMPLES - len(examples)].tolist():
            file = span.inputs[int(staged["input_D"][document])]
            text = " ".join(_beginning(staged, document, vocabulary))
            line = int(staged["line_D"][document]) + lines
            notes.examples.setdefault(reason, []).append(Example(file.source, file.name, line, text))


def _beginning(staged: StagedRange, document: int, vocabulary: Sequence[str]) -> Iterator[str]:
    """The first words of a document, from its tokens."""
    first = int(staged["paragraphs_D"][:document].sum(dtype=np.int64))
    count = int(staged["paragraphs_D"][document])
    start = int(staged["tokens_P"][:first].sum(dtype=np.int64))
    size = min(int(staged["tokens_P"][first : first + count].sum(dtype=np.int64)), _EXAMPLE_TOKENS)
    ids_t: npt.NDArray[np.int64] = staged["ids_T"][start : start + size]
    starts_t: npt.NDArray[np.bool_] = staged["starts_T"][start : start + size]
    word = ""
    for token, begins in zip((vocabulary[number] for number in ids_t.tolist()), starts_t.tolist(), strict=True):
        if begins and word:
            yield word
            word = ""
        word += token.removeprefix("##") if word else token
    if word:
        yield word
