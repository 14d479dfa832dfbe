"""The command line of the pipeline: python -m data_pipeline {stdlib-docs,tokenizer,build,verify,inspect}."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

from data_pipeline.errors import BertmaeError, UserError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog}: {message} ({self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code: 0 done, 2 the user's mistake, 3 damaged data, 130 interrupted."""
    try:
        options = _parser().parse_args(arguments)
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
        print("interrupted", file=sys.stderr)
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
    _add_inputs(command)
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
    _add_inputs(command)
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
    command.add_argument("--source", default="text", metavar="NAME", help="name of the source (%(default)s)")
    command.add_argument("--restart", action="store_true", help="remove the data set in DIR and build it anew")
    command.set_defaults(run=_build)


def _verify_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR")
    command.set_defaults(run=_verify)


def _inspect_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("directory", type=Path, metavar="DIR")
    command.add_argument("--documents", type=_count, default=3, metavar="N", help="documents to show (%(default)s)")
    command.add_argument("--split", default="train", choices=["train", "validation"])
    command.set_defaults(run=_inspect)


def _add_inputs(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--input",
        type=Path,
        nargs="+",
        required=True,
        metavar="FILE",
        help=".jsonl (an object a line), .json (an array), .txt (blank lines between documents); each also .gz or .zst",
    )
    command.add_argument("--text-field", default="text", metavar="NAME", help="field of the text (%(default)s)")


def _add_workers(command: argparse.ArgumentParser) -> None:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    command.add_argument(
        "--workers",
        type=_positive,
        default=available,
        metavar="N",
        help="processes; the bytes are the same (%(default)s)",
    )


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


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
    from data_pipeline.report import dropped_sentence
    from data_pipeline.sources import describe_inputs
    from data_pipeline.texts import read_texts
    from data_pipeline.tokenizer import check_free, save_tokenizer, train_wordpiece

    check_free(options.output)
    describe_inputs(options.input)
    dropped: Counter[str] = Counter()
    tokenizer = train_wordpiece(
        lambda: read_texts(options.input, options.text_field, dropped),
        options.vocab_size,
        options.min_frequency,
        options.cased,
    )
    save_tokenizer(tokenizer, options.output)
    if dropped:
        print(dropped_sentence(dropped))
    print(f"Wrote a WordPiece tokenizer of {len(tokenizer.vocabulary):,} tokens to {options.output}.")
    return 0


def _build(options: argparse.Namespace) -> int:
    from data_pipeline.build import BuildOptions, build

    given = BuildOptions(
        inputs=tuple(options.input),
        tokenizer=options.tokenizer,
        output=options.output,
        workers=options.workers,
        text_field=options.text_field,
        validation_fraction=options.validation_fraction,
        shard_blocks=options.shard_blocks,
        source=options.source,
        restart=options.restart,
    )
    for sentence in build(given):
        print(sentence)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from data_pipeline.manifest import load_manifest
    from data_pipeline.verify import verify

    manifest = load_manifest(options.directory)
    problems = verify(manifest)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        return 3
    print(f"Data set {manifest.identity[:12]} in {options.directory} is whole.")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    from data_pipeline.inspect import describe, documents
    from data_pipeline.manifest import load_manifest

    manifest = load_manifest(options.directory)
    for sentence in describe(manifest):
        print(sentence)
    for number, text in enumerate(islice(documents(manifest, options.split), options.documents)):
        print(f"\n--- document {number} ---\n{text}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
