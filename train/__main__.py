"""The command line of training: parse, call, exit code."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from train.errors import BertmaeError
from train.launch import launch_listens, may_be_started_again, tell_launch

_FIRST_RANK_SPEAKS = 30.0  # seconds that it may start later than the others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an expected failure is one line on stderr and its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except BertmaeError as error:
        if not error.everywhere or os.environ.get("RANK", "0") == "0":
            print(f"bertmae: {error}", file=sys.stderr)
        code = tell_launch(error.exit_code) if error.everywhere else error.exit_code
    except KeyboardInterrupt:
        code = 130
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser("pretrain", help="train a model on shards; start it with torchrun for several ranks")
    pretrain.add_argument("config", type=Path, metavar="CONFIG.yaml")
    pretrain.add_argument("overrides", nargs="*", metavar="key.sub=value")
    pretrain.add_argument("--max-minutes", metavar="M", help="stop after M minutes, as run.max_minutes=M does")
    pretrain.add_argument("--dry-run", action="store_true", help="check everything, print what would happen, and end")
    pretrain.set_defaults(command=_pretrain)

    data = commands.add_parser(
        "data-report", help="what a run will read, and its first rows in words; nothing is written"
    )
    data.add_argument("config", type=Path, metavar="CONFIG.yaml")
    data.add_argument("overrides", nargs="*", metavar="key.sub=value")
    data.add_argument("--rows", type=int, default=3, metavar="N", help="rows of step 0 to show (3)")
    data.add_argument("--incident", type=int, metavar="STEP", help="the rows of an incident of the run instead")
    data.set_defaults(command=_data_report)

    # Everything after `launch` is torchrun's or the command's, dashes included.
    launch = commands.add_parser("launch", prefix_chars="\0", add_help=False, help="torchrun with our exit codes")
    launch.add_argument("arguments", nargs="*", metavar="[torchrun options] pretrain CONFIG.yaml [key.sub=value ...]")
    launch.set_defaults(command=_launch)

    export = commands.add_parser("export", help="write a run's newest checkpoint as a transformers model")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--output", type=Path, required=True, metavar="DIR")
    export.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step instead of the newest")
    export.set_defaults(command=_export)

    fill = commands.add_parser("fill-mask", help="the best five tokens for every [MASK] of a text")
    fill.add_argument("model", type=Path, metavar="DIR")
    fill.add_argument("texts", nargs="+", metavar="TEXT")
    fill.set_defaults(command=_fill_mask)

    checkpoint = commands.add_parser(
        "checkpoint", help="list a run's checkpoints, verify them, delete incomplete ones, copy out the weights of one"
    )
    actions = checkpoint.add_subparsers(required=True, dest="action", metavar="ACTION")
    for action, words in (
        ("list", "a line for each: step, tokens, size, whole or not, why it is kept"),
        ("verify", "read every byte of every one"),
        ("delete-incomplete", "remove what a killed process left half-written"),
        ("consolidate", "copy the verified weights of one as a single fp32 file, with the configuration and tokenizer"),
    ):
        parts = actions.add_parser(action, help=words)
        parts.add_argument("run", type=Path, metavar="RUN")
        parts.set_defaults(command=_checkpoint)
    parts.add_argument("--output", type=Path, required=True, metavar="DIR")
    parts.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step instead of the newest")
    parts.set_defaults(command=_consolidate)

    reference = commands.add_parser("config-reference", help="every field of a configuration, as markdown")
    reference.set_defaults(command=_config_reference)
    return parser


def _pretrain(options: argparse.Namespace) -> int:
    from train.config_file import load_config
    from train.monitor.logs import start_logging
    from train.signals import StopRequest

    stop = StopRequest()
    stop.install()
    limit = [f"run.max_minutes={options.max_minutes}"] if options.max_minutes is not None else []
    try:
        config = load_config(options.config, [*options.overrides, *limit])
    except BertmaeError as error:
        error.everywhere = True  # every rank reads the same words
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            may_be_started_again()
        if os.environ.get("RANK", "0") != "0" and not launch_listens():
            stop.wait(_FIRST_RANK_SPEAKS)  # torchrun ends all ranks with the first that ends: here the silent one
        raise
    start_logging(int(os.environ.get("RANK", "0")))
    from train import distributed, pretrain

    if options.dry_run:
        for line in pretrain.dry_run(config):
            if os.environ.get("RANK", "0") == "0":
                print(line)
        return 0
    try:
        pretrain.pretrain(config, stop)
    except BertmaeError as error:
        if error.everywhere:
            distributed.finish()
        raise
    distributed.finish()
    return 0


def _data_report(options: argparse.Namespace) -> int:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # or batches would be made in pinned memory, which takes a GPU
    from train.config_file import load_config
    from train.data_report import report
    from train.incident_rows import incident_rows
    from train.monitor.logs import start_logging

    config = load_config(options.config, options.overrides)
    start_logging(0)
    lines = report(config, options.rows) if options.incident is None else incident_rows(config, options.incident)
    for line in lines:
        print(line)
    return 0


def _launch(options: argparse.Namespace) -> int:
    from train.launch import launch

    return launch(options.arguments)


def _export(options: argparse.Namespace) -> int:
    from train.export import export

    for sentence in export(options.run, options.output, options.step):
        print(sentence)
    return 0


def _fill_mask(options: argparse.Namespace) -> int:
    from train.fill_mask import fill_mask

    for line in fill_mask(options.model, options.texts):
        print(line)
    return 0


def _checkpoint(options: argparse.Namespace) -> int:
    from train.checkpoint_tools import ACTIONS

    for line in ACTIONS[options.action](options.run):
        print(line, flush=True)  # verify reads for minutes
    return 0


def _consolidate(options: argparse.Namespace) -> int:
    from train.checkpoint_tools import consolidate

    for sentence in consolidate(options.run, options.output, options.step):
        print(sentence)
    return 0


def _config_reference(options: argparse.Namespace) -> int:
    from train.config_reference import render

    print(render(), end="")
    return 0


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        # Threads of the libraries now and then abort the interpreter's teardown, which would look like a failed run.
        os._exit(exit_code)
    sys.exit(exit_code)
