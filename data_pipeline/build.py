"""The build: inputs become shards and a manifest in one folder, the same bytes for any number of workers.

Three steps, each of independent tasks whose results lie in OUTPUT/.build, so that a build that was stopped goes on:
ranges of the input are read, cleaned and tokenized (staging.py); what repeats is found (duplicates.py); shards are
written from what stays (survey.py, assemble.py).
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from data_pipeline import clean, filters, output, words
from data_pipeline.arrays import Encoding
from data_pipeline.assemble import finished_shard, missing_shards, write_shard
from data_pipeline.contamination import WORDS, evaluation_grams, evaluation_texts
from data_pipeline.dedup.duplicates import DuplicateRules, find_duplicates
from data_pipeline.durable import write_whole
from data_pipeline.errors import DataError, UserError
from data_pipeline.filters import Filters
from data_pipeline.inputs import Input, checksum, find_inputs
from data_pipeline.layout import BLOCK_BYTES, SPLITS, Planner, Selection
from data_pipeline.manifest import TOKEN_COUNTS_NAME, TOKENIZER_FOLDER, Manifest, Split, write_manifest
from data_pipeline.notes import Notes
from data_pipeline.parallel import Workers
from data_pipeline.progress import staging_shown, tasks_shown
from data_pipeline.report import Tally, counted, dropped_sentence, sentences, summarize, total
from data_pipeline.segment import DEFAULT, describe_segmenter
from data_pipeline.sources import DEFAULT_MAX_DOCUMENT_BYTES, Reading
from data_pipeline.spans import Span, cut, span_bytes
from data_pipeline.staging import missing_tasks, stage, staged_paths
from data_pipeline.survey import Survey, survey
from data_pipeline.tokenizer import TokenizerFolder, load_tokenizer, open_tokenizer, token_dtype
from data_pipeline.wordpiece import why_slow

_GRAMS_NAME = "evaluation-grams.npy"

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of `python -m data_pipeline build`."""

    inputs: tuple[Path, ...]  # files, folders and globs of the source `source`
    tokenizer: Path
    output: Path
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
    duplicates: DuplicateRules = field(default_factory=DuplicateRules)
    evaluation_files: tuple[Path, ...] = ()  # no document may share n-grams with them
    evaluation_words: int = WORDS
    word_segmenter: str = DEFAULT
    check_inputs: str = "time"  # how an input that changed between two calls is found: one of inputs.INPUT_CHECKS
    span_bytes: int | None = None  # of input that are one task; decides no byte of the output

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


@dataclass(frozen=True, slots=True)
class _Job:
    """A build that is under way: what was asked for, and what follows from it."""

    options: BuildOptions
    tokenizer: TokenizerFolder
    inputs: list[Input]
    found: Notes  # on files that no worker sees
    settings: dict[str, Any]
    workers: Workers

    @property
    def work(self) -> Path:
        return self.options.output / output.WORK

    def run(self, what: str) -> Callable[[Callable[[Item], Result], Iterable[Item]], Iterator[Result]]:
        return lambda function, items: tasks_shown(what, self.workers.run(function, items))


def build(options: BuildOptions, workers: Workers) -> list[str]:
    """Build the data set, go on with one that was stopped, or find it complete; the closing report as sentences.

    Raises UserError for options, files and folders that cannot be worked with and for another request than the one the
    folder was begun with, DataError for inputs that are damaged as a whole or leave no document. What is done stays
    done, whatever is raised.
    """
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"--validation-fraction {options.validation_fraction}: not at least 0 and below 1")
    tokenizer = load_tokenizer(options.tokenizer)
    found = Notes()
    patterns = [*((options.source, path) for path in options.inputs), *options.named_inputs]
    inputs = find_inputs(patterns, found, options.strict, options.check_inputs == "hash")
    job = _Job(options, tokenizer, inputs, found, _settings(options), workers)
    with output.locked(options.output):
        if options.restart or not (output.is_begun(options.output) or output.has_manifest(options.output)):
            output.begin(options.output, _request(job), tokenizer)
        else:
            output.refuse_other_request(options.output, output.load_request(options.output), _request(job))
        if output.has_manifest(options.output):
            output.remove_work(options.output)
            return [output.already_built(options.output)]
        report, manifest = _build(job)
        output.remove_work(options.output)
    complete = f"Data set {manifest.identity[:12]} is complete in {options.output}."
    return [*sentences(report), *_tokenizing_notes(tokenizer), complete]


def _build(job: _Job) -> tuple[dict[str, Any], Manifest]:
    options, folder = job.options, job.options.output
    request = output.load_request(folder)
    spans = list(cut(job.inputs, request["span_bytes"], options.txt_documents))
    _stage(job, spans, request["span_bytes"])
    ranges = staged_paths(job.work / output.RANGES)
    duplicates = job.work / output.DUPLICATES
    find_duplicates(ranges, duplicates, options.duplicates, job.run("comparing documents"))
    selection = Selection(duplicates, options.duplicates, options.validation_fraction)
    found = survey(ranges, spans, selection, _planners(job), job.tokenizer.vocabulary)
    splits, counts = _write_shards(job, ranges, found, selection)
    _check_not_empty(options, splits, found.tallies, job.found)
    write_whole(folder / TOKEN_COUNTS_NAME, counts)
    report = summarize(found.tallies, job.found, splits, sum(entry.size for entry in job.inputs))
    write_whole(folder / output.REPORT_NAME, (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode())
    manifest = write_manifest(
        folder,
        token_dtype=np.dtype(token_dtype(len(job.tokenizer.vocabulary))).name,
        vocabulary_size=len(job.tokenizer.vocabulary),
        special_ids=job.tokenizer.special_ids,
        tokenizer_checksum=job.tokenizer.checksum,
        settings=job.settings | {"inputs": [entry.as_json() for entry in job.inputs]},
        splits=splits,
        token_counts_checksum=xxhash.xxh3_128_hexdigest(counts),
    )
    return report, manifest


def _stage(job: _Job, spans: Sequence[Span], size: int) -> None:
    """Read, clean and tokenize what an earlier call did not."""
    options, folder = job.options, job.work / output.RANGES
    encoding = Encoding(
        tokenizer_folder=options.output / TOKENIZER_FOLDER,
        word_segmenter=options.word_segmenter,
        fast=not _why_slow(job.tokenizer.tokenizer_json),
        near=options.duplicates.near_threshold is not None,
        paragraphs=options.duplicates.paragraphs,
        evaluation_grams=_evaluation_grams(job) if options.evaluation_files else None,
        evaluation_words=options.evaluation_words,
    )
    # A range holds up to two spans of records: so only what is compressed, or cannot be cut, is several ranges.
    tasks = missing_tasks(folder, spans, 2 * size, job.workers.number, options.reading(), encoding)
    with staging_shown(folder, sum(entry.size for entry in job.inputs)):
        for _ in job.workers.run(stage, tasks):
            pass


def _evaluation_grams(job: _Job) -> Path:
    """The file of the n-grams that no document may have, made once."""
    path = job.work / _GRAMS_NAME
    if not path.exists():
        texts = (text for file in job.options.evaluation_files for text in evaluation_texts(file))
        content = io.BytesIO()
        np.save(content, evaluation_grams(texts, job.options.evaluation_words).hashes)
        write_whole(path, content.getvalue())
    return path


def _planners(job: _Job) -> dict[str, Planner]:
    block_tokens = BLOCK_BYTES // np.dtype(token_dtype(len(job.tokenizer.vocabulary))).itemsize
    return {split: Planner(split, job.options.shard_blocks, block_tokens) for split in SPLITS}


def _write_shards(
    job: _Job, ranges: Sequence[Path], found: Survey, selection: Selection
) -> tuple[dict[str, Split], bytes]:
    """Write the shards that an earlier call did not; all splits for the manifest, and the file of the token counts."""
    records, size = job.work / output.SHARDS, len(job.tokenizer.vocabulary)
    tasks = missing_shards(job.options.output, records, found.plans, ranges, selection, size)
    for _ in tasks_shown("writing shards", job.workers.run(write_shard, tasks)):
        pass
    counts_V = np.zeros(size, np.int64)
    shards = {split: list[Any]() for split in SPLITS}
    for plan in found.plans:
        shard, of_shard_V = finished_shard(records, plan)
        shards[plan.split].append(shard)
        counts_V += of_shard_V if plan.split == "train" else 0
    content = io.BytesIO()
    np.save(content, counts_V)
    return {split: Split.of(entries) for split, entries in shards.items()}, content.getvalue()


def _tokenizing_notes(tokenizer: TokenizerFolder) -> list[str]:
    reason = _why_slow(tokenizer.tokenizer_json)
    return [f"Tokenized the slow way, to the same ids: {reason}."] if reason else []


@cache
def _why_slow(tokenizer_json: str) -> str:
    return why_slow(open_tokenizer(tokenizer_json))


def _settings(options: BuildOptions) -> dict[str, Any]:
    """Everything but the inputs and the tokenizer that decides the bytes."""
    settings = {
        "text_field": options.text_field,
        "validation_fraction": options.validation_fraction,
        "shard_blocks": options.shard_blocks,
        "txt_documents": options.txt_documents,
        "max_document_bytes": options.max_document_bytes,
        "oversized": options.oversized,
        "filters": options.filters.settings(),
        "block_bytes": BLOCK_BYTES,
        "filter_rules": filters.RULES,
        "cleaning": clean.RULES,
        "duplicates": options.duplicates.settings(),
        "evaluation": {
            "files": {path.name: checksum(path) for path in options.evaluation_files},
            "words": options.evaluation_words if options.evaluation_files else None,
        },
        "words": words.RULES,
        "word_segmenter": describe_segmenter(options.word_segmenter),
    }
    plain: dict[str, Any] = json.loads(json.dumps(settings))  # as it is read back
    return plain


def _request(job: _Job) -> dict[str, Any]:
    """What a call that goes on must ask for, too, and how the first one cut the input."""
    return {
        "settings": job.settings | {"tokenizer": job.tokenizer.checksum},
        "inputs": [entry.as_json() | {"modified_ns": entry.modified_ns} for entry in job.inputs],
        "span_bytes": job.options.span_bytes or span_bytes(job.inputs),
    }


def _check_not_empty(options: BuildOptions, splits: dict[str, Split], tallies: dict[str, Tally], found: Notes) -> None:
    """DataError when no document is left to train on; then nothing stays that another try had to remove."""
    if splits["train"].documents:
        return
    output.remove_data_set(options.output)
    notes, held_out = total(tallies, found).notes, counted(splits["validation"].documents, "document")
    files = "".join(
        f" {reason} file {examples[0].file}: {examples[0].text}."
        for reason, examples in notes.examples.items()
        if reason in notes.files
    )
    raise DataError(f"no document is left to train on, {held_out} held out. {dropped_sentence(notes.dropped)}{files}")
