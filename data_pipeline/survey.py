"""A pass over all staged ranges: the plan of every shard, and the counts and examples of the report.

Legend: D documents of a range, P paragraphs of a range.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup.duplicates import EXACT, KEPT, NEAR, examples
from data_pipeline.inputs import Input
from data_pipeline.layout import SPLITS, Kept, Planner, Selection, ShardPlan, select
from data_pipeline.notes import Example
from data_pipeline.report import Tally
from data_pipeline.spans import Span
from data_pipeline.staging import StagedRange, part_of

REASONS = {EXACT: "exact duplicate", NEAR: "near duplicate"}
ONLY_REPEATED = "only repeated paragraphs"
_EXAMPLE_TOKENS = 40
_PAIRS = 1_000  # near duplicates of which it can be said what they are like


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
    result, lines, documents = Survey(), _Lines(), _Documents(paths, spans, vocabulary)
    near = selection.rules.near_threshold is not None
    first_of = dict(examples(selection.duplicates, _PAIRS)) if near else {}
    for index, path in enumerate(paths):
        staged, part = StagedRange(path), part_of(path)
        span = spans[part.span]
        kept = select(staged, index, selection)
        tally = result.tallies.setdefault(span.source, Tally())
        documents.lines.append(lines.before(span, part.span, staged.lines))
        tally.notes.update(staged.notes.moved(documents.lines[index]))
        _count(tally, staged, kept)
        for reason, dropped in _dropped(kept).items():
            found = (documents.example(index, number, first_of.get((index, number))) for number in dropped)
            tally.notes.count(reason, len(dropped), found)
        for number, split in enumerate(SPLITS):
            tokens_K = kept.tokens_D[kept.split_D == number]
            result.plans += planners[split].add(index, span.source, tokens_K)
    for split in SPLITS:
        result.plans += planners[split].finish()
    return result


@dataclass(frozen=True, slots=True)
class _Documents:
    """Where documents of the ranges stand in their files, and how they begin."""

    paths: Sequence[Path]
    spans: Sequence[Span]
    vocabulary: Sequence[str]
    lines: list[int] = field(default_factory=list)  # of the file before each range surveyed so far

    def place(self, index: int, document: int) -> tuple[Input, int]:
        """The file and the line."""
        staged, part = StagedRange(self.paths[index]), part_of(self.paths[index])
        file = self.spans[part.span].inputs[int(staged["input_D"][document])]
        return file, int(staged["line_D"][document]) + self.lines[index]

    def example(self, index: int, document: int, like: tuple[int, int] | None) -> Example:
        """A document that was dropped, being `like` the one (range, document), which stays."""
        file, line = self.place(index, document)
        text = " ".join(_beginning(StagedRange(self.paths[index]), document, self.vocabulary))
        if like is None:
            return Example(file.source, file.name, line, text)
        other, other_line = self.place(*like)
        return Example(file.source, file.name, line, text, f"like {other.name}:{other_line}")


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


def _dropped(kept: Kept) -> dict[str, list[int]]:
    """The documents that duplicates or their paragraphs cost, by reason."""
    dropped_D = {name: kept.reasons_D == code for code, name in REASONS.items()}
    dropped_D[ONLY_REPEATED] = (kept.reasons_D == KEPT) & (kept.split_D < 0)
    return {name: np.flatnonzero(of_reason_D).tolist() for name, of_reason_D in dropped_D.items() if of_reason_D.any()}


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
