"""What a build did, in numbers for report.json and in sentences for the terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from data_pipeline import language
from data_pipeline.manifest import Split
from data_pipeline.notes import Notes

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)
_SHOWN_LANGUAGES = 6
_SHOWN_CHARACTERS = 80  # of an example on the terminal


@dataclass(slots=True)
class Tally:
    """Counts of one source that grow while documents go by."""

    notes: Notes = field(default_factory=Notes)
    text_bytes: int = 0  # of kept documents, UTF-8, after cleaning
    words: int = 0
    unknown: int = 0  # tokens that are [UNK]
    repeated_paragraphs: int = 0  # removed from documents
    lengths: Counter[int] = field(default_factory=Counter)  # how many kept documents have so many tokens

    def update(self, other: "Tally") -> None:
        """Add the counts of another source."""
        self.notes.update(other.notes)
        self.text_bytes += other.text_bytes
        self.words += other.words
        self.unknown += other.unknown
        self.repeated_paragraphs += other.repeated_paragraphs
        self.lengths.update(other.lengths)


def total(tallies: Mapping[str, Tally], found: Notes) -> Tally:
    """The sum over the sources and over `found`, the notes on files that no source's documents come from."""
    result = Tally()
    result.notes.update(found)
    for tally in tallies.values():
        result.update(tally)
    return result


def summarize(tallies: Mapping[str, Tally], found: Notes, splits: dict[str, Split], input_bytes: int) -> dict[str, Any]:
    """The content of report.json; nothing in it depends on the machine or on the number of workers."""
    whole = total(tallies, found)
    return {
        "input_bytes": input_bytes,
        **_statistics(whole),
        "files_skipped": dict(sorted(whole.notes.files.items())),
        "examples": examples_json(whole.notes),
        "sources": {source: _statistics(tally) for source, tally in tallies.items()},
        "splits": {
            name: {
                "documents": split.documents,
                "tokens": split.tokens,
                "blocks": sum(len(shard.blocks) for shard in split.shards),
                "shards": len(split.shards),
                "shard_bytes": sum(shard.bytes for shard in split.shards),
            }
            for name, split in splits.items()
        },
    }


def _statistics(tally: Tally) -> dict[str, Any]:
    kept, tokens = tally.lengths.total(), sum(length * count for length, count in tally.lengths.items())
    return {
        "documents_read": kept + tally.notes.dropped.total(),
        "documents_kept": kept,
        "documents_dropped": dict(sorted(tally.notes.dropped.items())),
        "documents_changed": dict(sorted(tally.notes.changed.items())),
        "repeated_paragraphs": tally.repeated_paragraphs,
        "languages_of_sample": _languages(tally.notes.sample.values()),
        "text_bytes": tally.text_bytes,
        "tokens": tokens,
        "words": tally.words,
        "tokens_per_word": round(tokens / max(1, tally.words), 4),
        "unknown_share": round(tally.unknown / max(1, tokens), 6),
        "document_tokens_percentiles": {str(percent): _percentile(tally.lengths, percent) for percent in PERCENTILES},
    }


_language = cache(language.detect)  # of a text of the sample, which counts for its source and for the whole


def _languages(sample: Iterable[str]) -> dict[str, int]:
    """How many texts of the sample are in which language, the most frequent first."""
    counts = Counter(map(_language, sample))
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))


def _percentile(lengths: Counter[int], percent: int) -> int:
    """The length that `percent` of the documents do not exceed; 0 of none."""
    if not lengths:
        return 0
    sizes = sorted(lengths)
    ends = np.cumsum([lengths[size] for size in sizes])
    return sizes[int(np.searchsorted(ends, percent / 100 * ends[-1]))]


def sentences(report: dict[str, Any]) -> Iterator[str]:
    """`report` for people, a sentence a line."""
    yield f"Read {counted(report['documents_read'], 'document')} from {megabytes(report['input_bytes'])} of input."
    yield from problems(
        report["documents_dropped"], report["documents_changed"], report["files_skipped"], report["examples"]
    )
    if report["repeated_paragraphs"]:
        yield f"Removed {counted(report['repeated_paragraphs'], 'paragraph')} that stood in the corpus before."
    yield f"Kept {_kept(report)}"
    if report["languages_of_sample"]:
        counts = report["languages_of_sample"]
        yield f"Languages, by {counted(sum(counts.values()), 'document')} drawn from all: {_shares(counts)}."
    if len(report["sources"]) > 1:
        for source, statistics in report["sources"].items():
            dropped = sum(statistics["documents_dropped"].values())
            yield f"Source {source}: {_kept(statistics)} Dropped {dropped:,}."
    for name, split in report["splits"].items():
        if split["documents"]:
            yield (
                f"Split {name}: {counted(split['documents'], 'document')}, {counted(split['tokens'], 'token')} in "
                f"{counted(split['blocks'], 'block')}, {counted(split['shards'], 'shard')}, "
                f"{megabytes(split['shard_bytes'])}."
            )


def _kept(statistics: dict[str, Any]) -> str:
    lengths = statistics["document_tokens_percentiles"]
    return (
        f"{counted(statistics['documents_kept'], 'document')}, {megabytes(statistics['text_bytes'])} of text: "
        f"{counted(statistics['tokens'], 'token')}, {statistics['tokens_per_word']:.2f} per word, "
        f"{statistics['unknown_share']:.3%} of them [UNK]; {lengths['0']:,} to {lengths['100']:,} a document, "
        f"half of them at most {lengths['50']:,}, 19 of 20 at most {lengths['95']:,}."
    )


def _shares(counts: Mapping[str, int]) -> str:
    whole = sum(counts.values())
    shown = [f"{name} {count / whole:.1%}" for name, count in list(counts.items())[:_SHOWN_LANGUAGES]]
    return ", ".join(shown) + (", others" if len(counts) > _SHOWN_LANGUAGES else "")


def _examples(examples: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Each example in a line; control characters, which a terminal might obey, as escapes."""
    for reason, found in examples.items():
        for example in found:
            place = f"{example['file']}:{example['line']}" if "line" in example else example["file"]
            measure = f" ({example['measure']})" if "measure" in example else ""
            yield f"  {reason}{measure}: {_printable(place)}: {_printable(example.get('text', ''))}"


def _printable(text: str) -> str:
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[:_SHOWN_CHARACTERS])
    return shown + ("..." if len(text) > _SHOWN_CHARACTERS else "")


def dropped_sentence(dropped: Mapping[str, int]) -> str:
    """ "Dropped 3 documents: 2 exact duplicate, 1 not JSON." """
    reasons = _reasons(dropped) or "the inputs are empty"
    return f"Dropped {counted(sum(dropped.values()), 'document')}: {reasons}."


def problems(
    dropped: Mapping[str, int],
    changed: Mapping[str, int],
    files: Mapping[str, int],
    examples: Mapping[str, list[dict[str, Any]]],
) -> Iterator[str]:
    """What became of records and files, in sentences with examples; nothing when all is well."""
    if dropped:
        yield dropped_sentence(dropped)
    if changed:
        yield f"Changed in cleaning, by documents: {_reasons(changed)}."
    if files:
        yield f"Files skipped or read in part: {_reasons(files)}."
    yield from _examples(examples)


def examples_json(notes: Notes) -> dict[str, list[dict[str, Any]]]:
    """The examples by reason, for report.json."""
    return {reason: [example.as_json() for example in notes.examples[reason]] for reason in sorted(notes.examples)}


def _reasons(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in sorted(counts.items()))


def counted(number: int, noun: str) -> str:
    """ "1 shard", "2,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def megabytes(size: int) -> str:
    """A size in bytes as "2.70 MB" (10^6 bytes)."""
    return f"{size / 1e6:,.2f} MB"
