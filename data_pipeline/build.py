"""The build: inputs become shards and a manifest in one folder, the same bytes for any number of workers."""

import io
import json
import sys
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_pipeline import assemble, clean, dedup, words
from data_pipeline.assemble import SplitWriter, split_writers
from data_pipeline.dedup import SeenTexts, is_validation
from data_pipeline.durable import write_folder, write_whole
from data_pipeline.encode import EncodedUnit, make_encoder
from data_pipeline.errors import DataError, UserError
from data_pipeline.manifest import (
    TOKEN_COUNTS_NAME,
    TOKENIZER_FOLDER,
    Manifest,
    Split,
    write_manifest,
)
from data_pipeline.output import REPORT_NAME, SPLITS, already_built, has_manifest, locked, remove_data_set
from data_pipeline.parallel import map_in_order
from data_pipeline.report import Tally, counted, dropped_sentence, sentences, summarize
from data_pipeline.sources import describe_inputs, read_units
from data_pipeline.tokenizer import TokenizerFolder, load_tokenizer, token_dtype


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """The options of `python -m data_pipeline build`."""

    inputs: tuple[Path, ...]
    tokenizer: Path
    output: Path
    workers: int
    text_field: str
    validation_fraction: float
    shard_blocks: int
    source: str
    restart: bool


def build(options: BuildOptions) -> list[str]:
    """Build the data set, or find it built already; the closing report as sentences.

    Raises UserError for options, files and folders that cannot be worked with, DataError for inputs that are damaged as
    a whole or leave no document. A build that fails leaves no data set and none of its files.
    """
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"--validation-fraction {options.validation_fraction}: not at least 0 and below 1")
    inputs = describe_inputs(options.inputs)
    tokenizer = load_tokenizer(options.tokenizer)
    settings = _settings(options, inputs)
    with locked(options.output):
        if has_manifest(options.output) and not options.restart:
            return [already_built(options.output, settings, tokenizer.checksum)]
        remove_data_set(options.output)
        try:
            report, manifest = _build(options, settings, tokenizer)
        except BaseException:
            remove_data_set(options.output)
            raise
    return [*sentences(report), f"Data set {manifest.identity[:12]} is complete in {options.output}."]


def _build(
    options: BuildOptions, settings: dict[str, Any], tokenizer: TokenizerFolder
) -> tuple[dict[str, Any], Manifest]:
    write_folder(options.output / TOKENIZER_FOLDER, tokenizer.files)
    vocabulary_size = len(tokenizer.vocabulary)
    with (
        split_writers(options.output, SPLITS, options.source, options.shard_blocks, vocabulary_size) as writers,
        closing(_encoded(options, tokenizer)) as units,
    ):
        tally = _consume(units, writers, options.validation_fraction, tokenizer)
        splits = {name: writer.finish() for name, writer in writers.items()}
        counts_V = writers["train"].token_counts_V
    _check_not_empty(splits, tally)
    counts = io.BytesIO()
    np.save(counts, counts_V)
    write_whole(options.output / TOKEN_COUNTS_NAME, counts.getvalue())
    report = summarize(tally, splits, sum(entry["bytes"] for entry in settings["inputs"]))
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


def _settings(options: BuildOptions, inputs: list[dict[str, str | int]]) -> dict[str, Any]:
    """Everything but the tokenizer that decides the bytes."""
    return {
        "inputs": inputs,
        "text_field": options.text_field,
        "validation_fraction": options.validation_fraction,
        "shard_blocks": options.shard_blocks,
        "source": options.source,
        "block_bytes": assemble.BLOCK_BYTES,
        "cleaning": clean.RULES,
        "deduplication": dedup.RULES,
        "words": words.RULES,
    }


def _encoded(options: BuildOptions, tokenizer: TokenizerFolder) -> Generator[EncodedUnit, None, None]:
    """The encoded units in the order of the input, with a progress bar where there is a terminal."""
    from tqdm import tqdm

    total = sum(path.stat().st_size for path in options.inputs)
    arguments = (tokenizer.tokenizer_json, options.text_field)
    units = map_in_order(make_encoder, arguments, read_units(options.inputs), options.workers)
    with tqdm(total=total, unit="B", unit_scale=True, desc="build", disable=not sys.stderr.isatty()) as bar:
        tokens = 0
        for unit in units:
            tokens += unit.ids_T.size
            bar.set_postfix_str(f"{tokens / 1e6:,.1f} M tokens", refresh=False)
            bar.update(unit.read)
            yield unit


def _consume(
    units: Iterator[EncodedUnit],
    writers: dict[str, SplitWriter],
    validation_fraction: float,
    tokenizer: TokenizerFolder,
) -> Tally:
    """Give every document met for the first time to its split's writer."""
    seen, tally, unknown_id = SeenTexts(), Tally(), tokenizer.special_ids["unk"]
    for unit in units:
        tally.dropped += unit.dropped
        end = 0
        for length, text_bytes, digest in zip(unit.lengths_D, unit.text_bytes_D, unit.digests_D, strict=True):
            start, end = end, end + length
            if not seen.first_time(digest):
                tally.dropped["exact duplicate"] += 1
                continue
            ids_t, starts_t = unit.ids_T[start:end], unit.word_starts_T[start:end]
            writers[SPLITS[is_validation(digest, validation_fraction)]].add(ids_t, starts_t)
            tally.lengths.append(length)
            tally.text_bytes += text_bytes
            tally.words += int(np.count_nonzero(starts_t))
            tally.unknown += int(np.count_nonzero(ids_t == unknown_id))
    return tally


def _check_not_empty(splits: dict[str, Split], tally: Tally) -> None:
    if splits["train"].documents:
        return
    held_out = counted(splits["validation"].documents, "document")
    raise DataError(f"no document is left to train on, {held_out} held out. {dropped_sentence(tally.dropped)}")
