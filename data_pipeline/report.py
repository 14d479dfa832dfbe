"""What a build did, in numbers for report.json and in sentences for the terminal."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.manifest import Split


@dataclass(slots=True)
class Tally:
    """Counts that grow while documents go by."""

    dropped: Counter[str] = field(default_factory=Counter)  # documents, by reason
    text_bytes: int = 0  # of kept documents, UTF-8, after cleaning
    words: int = 0
    unknown: int = 0  # tokens that are [UNK]
    lengths: list[int] = field(default_factory=list)  # tokens of each kept document


def summarize(tally: Tally, splits: dict[str, Split], input_bytes: int) -> dict[str, Any]:
    """The content of report.json; nothing in it depends on the machine or on the number of workers."""
    tokens = sum(tally.lengths)
    kept, dropped = len(tally.lengths), sum(tally.dropped.values())
    return {
        "input_bytes": input_bytes,
        "documents_read": kept + dropped,
        "documents_kept": kept,
        "documents_dropped": dict(sorted(tally.dropped.items())),
        "text_bytes": tally.text_bytes,
        "tokens": tokens,
        "words": tally.words,
        "tokens_per_word": round(tokens / tally.words, 4),
        "unknown_share": round(tally.unknown / tokens, 6),
        "document_tokens_percentiles": {
            str(percent): int(np.percentile(tally.lengths, percent, method="nearest"))
            for percent in (0, 5, 25, 50, 75, 95, 100)
        },
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


def sentences(report: dict[str, Any]) -> list[str]:
    """`report` for people, a sentence a line."""
    lengths = report["document_tokens_percentiles"]
    lines = [
        f"Read {counted(report['documents_read'], 'document')} from {megabytes(report['input_bytes'])} of input.",
        f"Kept {counted(report['documents_kept'], 'document')}, {megabytes(report['text_bytes'])} of text: "
        f"{counted(report['tokens'], 'token')}, {report['tokens_per_word']:.2f} per word, "
        f"{report['unknown_share']:.3%} of them [UNK].",
        f"A document has {lengths['0']:,} to {lengths['100']:,} tokens, half of them at most {lengths['50']:,}.",
    ]
    if dropped := report["documents_dropped"]:
        lines.insert(1, dropped_sentence(dropped))
    for name, split in report["splits"].items():
        if split["documents"]:
            lines.append(
                f"Split {name}: {counted(split['documents'], 'document')}, {counted(split['tokens'], 'token')} in "
                f"{counted(split['blocks'], 'block')}, {counted(split['shards'], 'shard')}, "
                f"{megabytes(split['shard_bytes'])}."
            )
    return lines


def dropped_sentence(dropped: Mapping[str, int]) -> str:
    """ "Dropped 3 documents: 2 exact duplicate, 1 not JSON." """
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
    return f"Dropped {counted(sum(dropped.values()), 'document')}: {reasons or 'the inputs are empty'}."


def counted(number: int, noun: str) -> str:
    """ "1 shard", "2,000 shards"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def megabytes(size: int) -> str:
    """A size in bytes as "2.70 MB" (10^6 bytes)."""
    return f"{size / 1e6:,.2f} MB"
