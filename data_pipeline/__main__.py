"""The command line of the pipeline: python -m data_pipeline {stdlib-docs,tokenizer,build,verify,inspect}."""

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from data_pipeline.errors import BertmaeError, DataError, UserError

if TYPE_CHECKING:
    from data_pipeline.filters import Filters


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} ({self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 2 the user's mistake, 3 damaged data, 130 interrupted."""
    options = argparse.Namespace(interrupted="interrupted")
    try:
        _parser().parse_args(arguments, options)
        result: int = options.run(options)
        sys.stdout.flush()
    except BertmaeError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of a pipe (head, less) went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"{error.filename or 'input or output'}: {error.strerror}", file=sys.stderr)
        return UserError.exit_code
    except KeyboardInterrupt:
        print(options.interrupted, file=sys.stderr)
        return 130
    return result


def _parser() -> _Parser:
    parser = _Parser(prog="python -m data_pipeline", description="From text to tokenized, verifiable shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    _stdlib_docs_options(
        commands.add_parser("stdlib-docs", help="write Python's own documentation strings as a corpus")
    )
    _tokenizer_options(commands.add_parser("tokenizer", help="train a tokenizer"))
    _build_options(commands.add_parser("build", help="build shards and manifest"))
    _verify_options(commands.add_parser("verify", help="check every checksum, count, bound and id of a data set"))
    _inspect_options(commands.add_parser("inspect", help="show statistics and documents of a data set"))
    return parser


def _stdlib_docs_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl")
    _add_workers(command)
    command.set_defaults(run=_stdlib_docs)


def _tokenizer_options(command: argparse.ArgumentParser) -> None:
    _add_inputs(command, required=True)
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    command.add_argument(
        "--vocab-size", type=_positive, default=30522, metavar="N", help="tokens at most (%(default)s)"
    )
    command.add_argument("--kind", choices=["wordpiece"], default="wordpiece")
    command.add_argument(
        "--min-frequency", type=_positive, default=2, metavar="N", help="leave out what is met less often (%(default)s)"
    )
    command.add_argument("--cased", action="store_true", help="keep capital letters and accents")
    command.set_defaults(run=_tokenizer)


def _build_options(command: argparse.ArgumentParser) -> None:
    from data_pipeline.inputs import INPUT_CHECKS
    from data_pipeline.segment import DEFAULT, NAMES

    _add_inputs(command, required=False)
    command.add_argument(
        "--tokenizer", type=Path, required=True, metavar="DIR", help="folder with tokenizer.json, or a BERT vocab.txt"
    )
    command.add_argument("--output", type=Path, required=True, metavar="DIR")
    _add_workers(command)
    command.add_argument(
        "--validation-fraction", type=float, default=0.0, metavar="F", help="share of documents held out (%(default)s)"
    )
    command.add_argument(
        "--shard-blocks", type=_positive, default=64, metavar="N", help="blocks of 1 MiB a shard (%(default)s)"
    )
    command.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="NAME[=PATH]",
        help="NAME=PATH: one more file, folder or glob with its source's name, as often as needed; "
        "NAME alone: the name of the --input ones (text)",
    )
    _add_filters(command)
    _add_language(command)
    _add_duplicates(command)
    command.add_argument(
        "--word-segmenter",
        choices=NAMES,
        default=DEFAULT,
        help="finds the words of texts with Chinese characters, for whole-word masking (%(default)s)",
    )
    command.add_argument(
        "--check-inputs",
        choices=INPUT_CHECKS,
        default="time",
        help="how an input that changed between two calls is found, besides its size (%(default)s)",
    )
    command.add_argument("--restart", action="store_true", help="remove the data set in DIR and build it anew")
    command.set_defaults(run=_build, interrupted="interrupted; the same command goes on from here")


def _verify_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR", help="a data set, or any folder of .tar, or one .tar")
    _add_workers(command, "processes; they find the same")
    command.set_defaults(run=_verify)


def _inspect_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR", help="a data set, or any folder of .tar, or one .tar")
    command.add_argument("--documents", type=_count, default=3, metavar="N", help="documents to show (%(default)s)")
    command.add_argument(
        "--tokenizer", type=Path, metavar="DIR", help="turns the ids of shards without a manifest into text"
    )
    command.add_argument("--split", default="train", choices=["train", "validation"])
    command.set_defaults(run=_inspect)


def _add_inputs(command: argparse.ArgumentParser, required: bool) -> None:
    from data_pipeline.formats import FORMATS, TXT_DOCUMENTS
    from data_pipeline.sources import DEFAULT_MAX_DOCUMENT_BYTES, OVERSIZED_RULES

    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=required,
        default=[],
        metavar="PATH",
        help=f"files, folders and globs of {', '.join(FORMATS)}, the first four also .gz or .zst; "
        "datasets:NAME[@CONFIG][#SPLIT] for what the library datasets opens by name or folder",
    )
    command.add_argument("--text-field", default="text", metavar="NAME", help="field or column (%(default)s)")
    command.add_argument(
        "--txt-documents", choices=TXT_DOCUMENTS, default="block", help="a document of .txt (%(default)s: blank lines)"
    )
    command.add_argument(
        "--max-document-bytes",
        type=_positive,
        default=DEFAULT_MAX_DOCUMENT_BYTES,
        metavar="N",
        help="of a record in its file: no more is held in memory (%(default)s)",
    )
    command.add_argument(
        "--oversized",
        choices=OVERSIZED_RULES,
        default="drop",
        help="what happens to a larger one; .jsonl, .json and .csv are always dropped (%(default)s)",
    )
    command.add_argument(
        "--strict", action="store_true", help="the first damaged record or file, or stray character, is an error"
    )


def _add_filters(command: argparse.ArgumentParser) -> None:
    from data_pipeline.filters import NAMES, Filters

    usual = Filters()
    command.add_argument(
        "--filters", default="all", metavar="NAMES", help=f"none, all or some of {','.join(NAMES)} (%(default)s)"
    )
    for name, text in (
        ("min_characters", "filter length"),
        ("max_characters", "filter length"),
        ("max_symbol_share", "filter symbols: share of the characters"),
        ("max_digit_share", "filter digits: share of the characters"),
        ("max_repeated_lines", "filter repeated-lines: share of the lines"),
        ("max_repeated_line_characters", "filter repeated-lines: share of the characters"),
        ("max_top_ngrams", "filter repeated-ngrams: share in the most frequent 2-, 3-, 4-gram"),
        ("max_repeated_ngrams", "filter repeated-ngrams: share in 5- to 10-grams that stood before"),
    ):
        value = getattr(usual, name)
        shares = len(value) if isinstance(value, tuple) else 0
        command.add_argument(
            f"--{name.replace('_', '-')}",
            type=_shares(shares) if shares else _share if isinstance(value, float) else _count,
            default=value,
            metavar=",".join(["F"] * shares) if shares else "F" if isinstance(value, float) else "N",
            help=f"{text} ({','.join(map(str, value)) if shares else value})",
        )


def _add_language(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--languages",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="CODES",
        help="filter language: drop documents in others, such as en,zh (no document is dropped for its language)",
    )


def _add_duplicates(command: argparse.ArgumentParser) -> None:
    from data_pipeline.contamination import WORDS
    from data_pipeline.dedup.near import THRESHOLD

    command.add_argument(
        "--dedup",
        choices=["none", "exact", "near"],
        default="exact",
        help="which documents are dropped as duplicates: none, equal ones, or near duplicates too (%(default)s)",
    )
    command.add_argument(
        "--near-threshold",
        type=_share,
        default=THRESHOLD,
        metavar="F",
        help="similarity of near duplicates (%(default)s)",
    )
    command.add_argument(
        "--dedup-paragraphs", action="store_true", help="remove lines of 100 bytes and more that stood before"
    )
    command.add_argument(
        "--decontaminate",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="evaluation files (.jsonl, .json, .csv, .tsv, .txt): documents that share n-grams with them are dropped",
    )
    command.add_argument(
        "--decontaminate-words",
        type=_positive,
        default=WORDS,
        metavar="N",
        help="length of these n-grams; Chinese: two characters for a word (%(default)s)",
    )


def _add_workers(command: argparse.ArgumentParser, text: str = "processes; the bytes are the same") -> None:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command.add_argument(
        "--workers",
        type=_positive,
        default=available,
        metavar="N",
        help=f"{text} (%(default)s)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def _shares(number: int) -> Callable[[str], tuple[float, ...]]:
    def shares(text: str) -> tuple[float, ...]:
        values = tuple(_share(part) for part in text.split(","))
        if len(values) != number:
            raise argparse.ArgumentTypeError(f"{text!r} is not {number} shares with commas between them")
        return values

    return shares


def _positive(text: str) -> int:
    if _count(text) == 0:
        raise argparse.ArgumentTypeError("at least 1 is needed")
    return int(text)


# The commands import what they need: --help answers at once.


def _stdlib_docs(options: argparse.Namespace) -> int:
    from data_pipeline.report import counted, megabytes
    from data_pipeline.stdlib_docs import write_stdlib_docs

    documents, size = write_stdlib_docs(options.output, options.workers)
    print(f"Wrote {counted(documents, 'document')}, {megabytes(size)} of text, to {options.output}.")
    return 0


def _tokenizer(options: argparse.Namespace) -> int:
    from data_pipeline.inputs import find_inputs
    from data_pipeline.notes import Notes
    from data_pipeline.report import examples_json, problems
    from data_pipeline.sources import Reading
    from data_pipeline.texts import read_texts
    from data_pipeline.tokenizer import check_free, save_tokenizer, train_wordpiece

    check_free(options.output)
    found = Notes()
    inputs = find_inputs([("text", path) for path in options.input], found, options.strict)
    notes = Notes()
    reading = Reading(
        options.text_field, options.txt_documents, options.max_document_bytes, options.oversized, options.strict
    )

    def texts() -> Iterator[str]:
        nonlocal notes
        notes = Notes()  # anew in every pass over the texts
        notes.update(found)
        return read_texts(inputs, reading, notes)

    tokenizer = train_wordpiece(texts, options.vocab_size, options.min_frequency, options.cased)
    save_tokenizer(tokenizer, options.output)
    for sentence in problems(notes.dropped, notes.changed, notes.files, examples_json(notes)):
        print(sentence)
    print(f"Wrote a WordPiece tokenizer of {len(tokenizer.vocabulary):,} tokens to {options.output}.")
    return 0


def _sources(options: argparse.Namespace) -> tuple[str, tuple[tuple[str, Path], ...]]:
    """The name of the --input files, and the (name, path) pairs of --source."""
    names = [given for given in options.source if "=" not in given]
    pairs = [given.partition("=") for given in options.source if "=" in given]
    wrong = [f"{name}={path}" for name, _, path in pairs if not name or not path]
    if wrong or len(names) > 1 or "" in names:
        raise UserError(f"--source {(wrong or names[-1:])[0]}: give NAME=PATH, or once NAME for what --input names")
    if not options.input and not pairs:
        raise UserError(
            "nothing to read: give --input PATH or --source NAME=PATH (python -m data_pipeline build --help)"
        )
    return names[0] if names else "text", tuple((name, Path(path)) for name, _, path in pairs)


def _filters(options: argparse.Namespace) -> "Filters":
    from data_pipeline.filters import Filters, chosen

    thresholds = {field.name: getattr(options, field.name) for field in fields(Filters) if field.name != "names"}
    return Filters(names=chosen(options.filters, options.languages), **thresholds)


def _build(options: argparse.Namespace) -> int:
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.dedup.duplicates import DuplicateRules
    from data_pipeline.parallel import open_workers

    source, named_inputs = _sources(options)
    given = BuildOptions(
        inputs=tuple(options.input),
        tokenizer=options.tokenizer,
        output=options.output,
        text_field=options.text_field,
        validation_fraction=options.validation_fraction,
        shard_blocks=options.shard_blocks,
        source=source,
        named_inputs=named_inputs,
        txt_documents=options.txt_documents,
        max_document_bytes=options.max_document_bytes,
        oversized=options.oversized,
        strict=options.strict,
        filters=_filters(options),
        duplicates=DuplicateRules(
            exact=options.dedup != "none",
            near_threshold=options.near_threshold if options.dedup == "near" else None,
            paragraphs=options.dedup_paragraphs,
        ),
        evaluation_files=tuple(options.decontaminate),
        evaluation_words=options.decontaminate_words,
        word_segmenter=options.word_segmenter,
        check_inputs=options.check_inputs,
        restart=options.restart,
    )
    with open_workers(options.workers) as workers:
        for sentence in build(given, workers) if workers else []:
            print(sentence)
    return 0


def _verify(options: argparse.Namespace) -> int:
    import time

    from data_pipeline.checks.checking import workers_end_at_interrupt
    from data_pipeline.checks.foreign import foreign_shards
    from data_pipeline.checks.verify import summary, verify
    from data_pipeline.manifest import load_manifest

    with workers_end_at_interrupt():
        if shards := foreign_shards(options.directory):
            return _verify_foreign(shards, options.workers)
        manifest, began = load_manifest(options.directory), time.monotonic()
        problems = verify(manifest, options.workers)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return DataError.exit_code
    print(summary(manifest, time.monotonic() - began))
    return 0


def _verify_foreign(paths: list[Path], workers: int) -> int:
    from data_pipeline.checks.foreign import Totals, check_shards, closing_sentence, problems, sentence

    total = Totals()
    for shard in check_shards(paths, workers, "verify"):
        print(sentence(shard))
        for problem in problems(shard):
            print(problem, file=sys.stderr)
        total.add(shard)
    if total.problems:
        return DataError.exit_code
    print(closing_sentence(total))
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from data_pipeline.checks.foreign import foreign_shards
    from data_pipeline.checks.inspect import describe, documents
    from data_pipeline.manifest import load_manifest

    if shards := foreign_shards(options.directory):
        return _inspect_foreign(shards, options.tokenizer, options.documents)
    manifest = load_manifest(options.directory)
    for sentence in describe(manifest):
        print(sentence)
    for number, text in enumerate(islice(documents(manifest, options.split), options.documents)):
        print(f"\n--- document {number} ---\n{text}")
    return 0


def _inspect_foreign(paths: list[Path], tokenizer: Path | None, documents: int) -> int:
    from data_pipeline.checks.foreign import Totals, check_shards
    from data_pipeline.checks.inspect_foreign import describe_shards, samples
    from data_pipeline.tokenizer import load_tokenizer

    vocabulary = load_tokenizer(tokenizer).vocabulary if tokenizer else None
    total = Totals()
    for shard in check_shards(paths, 1, "inspect"):
        total.add(shard)
    for sentence in describe_shards(total):
        print(sentence)
    for number, text in enumerate(islice(samples(paths, vocabulary), documents)):
        print(f"\n--- document {number} ---\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
