"""The build: inputs become shards and a manifest in one folder, the same bytes for any number of workers."""

import io
import json
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipeline import assemble, clean, dedup, filters, words
from data_pipeline.assemble import SplitWriter, split_writers
from data_pipeline.dedup import SeenTexts, is_validation
from data_pipeline.durable import write_folder, write_whole
from data_pipeline.encode import EncodedUnit, make_encoder
from data_pipeline.errors import DataError, UserError
from data_pipeline.filters import Filters
from data_pipeline.inputs import Input, find_inputs
from data_pipeline.manifest import (
    TOKEN_COUNTS_NAME,
    TOKENIZER_FOLDER,
    Manifest,
    Split,
    write_manifest,
)
from data_pipeline.notes import Notes
from data_pipeline.output import REPORT_NAME, SPLITS, already_built, has_manifest, locked, remove_data_set
from data_pipeline.parallel import map_in_order
from data_pipeline.progress import progress
from data_pipeline.report import Tally, counted, dropped_sentence, sentences, summarize, total
from data_pipeline.segment import DEFAULT, describe_segmenter
from data_pipeline.sources import DEFAULT_MAX_DOCUMENT_BYTES, Reading, read_units
from data_pipeline.tokenizer import TokenizerFolder, load_tokenizer, open_tokenizer, token_dtype
from data_pipeline.wordpiece import why_slow


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of `python -m data_pipeline build`."""

    inputs: tuple[Path, ...]  # files, folders and globs of the source `source`
    tokenizer: Path
    output: Path
    workers: int
    text_field: str
    validation_fraction: float
    shard_blocks: int
    source: str
    restart: bool
    named_inputs: tuple[tuple[str, Path], ...] = ()  # (source, file or folder or glob)
    txt_documents: str = "block"
    max_document_bytes: int = DEFAULT_MAX_DOCUMENT_BYTES
    oversized: str = "drop"
    strict: bool = False
    filters: Filters = field(default_factory=Filters.none)
    word_segmenter: str = DEFAULT

    def reading(self) -> Reading:
        """The options that say how files become texts."""
        return Reading(
            self.text_field,
            self.txt_documents,
            self.max_document_bytes,
            self.oversized,
            self.strict,
            self.filters,
        )


def build(options: BuildOptions) -> list[str]:
    """Build the data set, or find it built already; the closing report as sentences.

    Raises UserError for options, files and folders that cannot be worked with, DataError for inputs that are damaged as
    a whole or leave no document. A build that fails leaves no data set and none of its files.
    """
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"--validation-fraction {options.validation_fraction}: not at least 0 and below 1")
    tokenizer = load_tokenizer(options.tokenizer)
    found = Notes()
    patterns = [*((options.source, path) for path in options.inputs), *options.named_inputs]
    inputs = find_inputs(patterns, found, options.strict)
    settings = _settings(options, inputs)
    with locked(options.output):
        if has_manifest(options.output) and not options.restart:
            return [already_built(options.output, settings, tokenizer.checksum)]
        remove_data_set(options.output)
        try:
            report, manifest = _build(options, inputs, found, settings, tokenizer)
        except BaseException:
            remove_data_set(options.output)
            raise
    complete = f"Data set {manifest.identity[:12]} is complete in {options.output}."
    return [*sentences(report), *_tokenizing_notes(tokenizer), complete]


def _build(
    options: BuildOptions,
    inputs: list[Input],
    found: Notes,
    settings: dict[str, Any],
    tokenizer: TokenizerFolder,
) -> tuple[dict[str, Any], Manifest]:
    write_folder(options.output / TOKENIZER_FOLDER, tokenizer.files)
    vocabulary_size = len(tokenizer.vocabulary)
    with (
        split_writers(options.output, SPLITS, options.source, options.shard_blocks, vocabulary_size) as writers,
        closing(_encoded(options, inputs, tokenizer)) as units,
    ):
        tallies = _consume(units, writers, options.validation_fraction, tokenizer)
        splits = {name: writer.finish() for name, writer in writers.items()}
        counts_V = writers["train"].token_counts_V
    _check_not_empty(splits, tallies, found)
    counts = io.BytesIO()
    np.save(counts, counts_V)
    write_whole(options.output / TOKEN_COUNTS_NAME, counts.getvalue())
    report = summarize(tallies, found, splits, sum(entry.size for entry in inputs))
    write_whole(options.output / REPORT_NAME, (json.dumps(report, indent=2) + "\n").encode())
    manifest = write_manifest(
        options.output,
        token_dtype=np.dtype(token_dtype(vocabulary_size)).name,
        vocabulary_size=vocabulary_size,
        special_ids=tokenizer.special_ids,
        tokenizer_checksum=tokenizer.checksum,
        settings=settings,
        splits=splits,
        token_counts_checksum=xxhash.xxh3_128_hexdigest(counts.getvalue()),
    )
    return report, manifest


def _tokenizing_notes(tokenizer: TokenizerFolder) -> list[str]:
    reason = _why_slow(tokenizer.tokenizer_json)
    return [f"Tokenized the slow way, to the same ids: {reason}."] if reason else []


@cache
def _why_slow(tokenizer_json: str) -> str:
    return why_slow(open_tokenizer(tokenizer_json))


def _settings(options: BuildOptions, inputs: list[Input]) -> dict[str, Any]:
    """Everything but the tokenizer that decides the bytes."""
    return {
        "inputs": [entry.as_json() for entry in inputs],
        "text_field": options.text_field,
        "validation_fraction": options.validation_fraction,
        "shard_blocks": options.shard_blocks,
        "txt_documents": options.txt_documents,
        "max_document_bytes": options.max_document_bytes,
        "oversized": options.oversized,
        "filters": json.loads(json.dumps(options.filters.settings())),
        "block_bytes": assemble.BLOCK_BYTES,
        "filter_rules": filters.RULES,
        "cleaning": clean.RULES,
        "deduplication": dedup.RULES,
        "words": words.RULES,
        "word_segmenter": describe_segmenter(options.word_segmenter),
    }


def _encoded(
    options: BuildOptions, inputs: list[Input], tokenizer: TokenizerFolder
) -> Generator[EncodedUnit, None, None]:
    """The encoded units in the order of the input, with the progress shown."""
    arguments = (tokenizer.tokenizer_json, options.word_segmenter, not _why_slow(tokenizer.tokenizer_json))
    units = map_in_order(make_encoder, arguments, read_units(inputs, options.reading()), options.workers)
    with progress(sum(entry.size for entry in inputs)) as add:
        for unit in units:
            add(unit.read, len(unit.lengths_D), unit.ids_T.size)
            yield unit


def _consume(
    units: Iterator[EncodedUnit],
    writers: dict[str, SplitWriter],
    validation_fraction: float,
    tokenizer: TokenizerFolder,
) -> dict[str, Tally]:
    """Give every document met for the first time to its split's writer; the counts of each source."""
    seen, tallies, unknown_id = SeenTexts(), dict[str, Tally](), tokenizer.special_ids["unk"]
    for unit in units:
        if unit.source not in tallies:
            for writer in writers.values():
                writer.begin_source(unit.source)
        tally = tallies.setdefault(unit.source, Tally())
        tally.notes.update(unit.notes)
        end = 0
        for length, text_bytes, digest in zip(unit.lengths_D, unit.text_bytes_D, unit.digests_D, strict=True):
            start, end = end, end + length
            if not seen.first_time(digest):
                tally.notes.dropped["exact duplicate"] += 1
                continue
            ids_t, starts_t = unit.ids_T[start:end], unit.word_starts_T[start:end]
            writers[SPLITS[is_validation(digest, validation_fraction)]].add(ids_t, starts_t)
            tally.lengths.append(length)
            tally.text_bytes += text_bytes
            tally.words += int(np.count_nonzero(starts_t))
            tally.unknown += int(np.count_nonzero(ids_t == unknown_id))
    return tallies


def _check_not_empty(splits: dict[str, Split], tallies: dict[str, Tally], found: Notes) -> None:
    if splits["train"].documents:
        return
    notes, held_out = total(tallies, found).notes, counted(splits["validation"].documents, "document")
    files = "".join(
        f" {reason} file {examples[0].file}: {examples[0].text}."
        for reason, examples in notes.examples.items()
        if reason in notes.files
    )
    raise DataError(f"no document is left to train on, {held_out} held out. {dropped_sentence(notes.dropped)}{files}")
