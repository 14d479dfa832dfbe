"""The commands `finetune`, `evaluate` and `predict`: their options, and what they call. Imports nothing heavy."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train.errors import BertmaeError, UserError, the_same_everywhere
from train.finetune.settings import PRECISIONS, TASKS, Option, Settings, settings_for

_FIRST_RANK_SPEAKS = 30.0  # seconds that it may start later than the others


def add_commands(commands: Any) -> None:
    """Add `finetune`, `evaluate` and `predict` to the commands of `python -m train`."""
    finetune = commands.add_parser("finetune", help="train an exported model for a task; torchrun for several ranks")
    tasks = finetune.add_subparsers(required=True, dest="task", metavar="TASK")
    for name, kind in TASKS.items():
        parser = tasks.add_parser(name, help=kind.help, description=kind.help)
        _add_shared(parser, name)
        for option in kind.options:
            _add_option(parser, option)
        parser.set_defaults(command=_finetune)

    evaluate = commands.add_parser("evaluate", help="every task and seed of a suite file, and one table; goes on")
    evaluate.add_argument("model", type=Path, metavar="MODEL", help="an export, or any local folder of transformers")
    evaluate.add_argument("--suite", type=Path, required=True, metavar="FILE.yaml", help="configs/suites/ has some")
    evaluate.add_argument("--data", type=Path, default=Path(), metavar="DIR", help="where the suite's paths begin (.)")
    evaluate.add_argument("--output", type=Path, required=True, metavar="DIR", help="a folder a task, and the table")
    evaluate.add_argument("--seeds", type=_numbers, metavar="A,B,C", help="in the place of the suite's")
    evaluate.add_argument("--skip-absent", action="store_true", help="leave out tasks whose data folder is not there")
    evaluate.set_defaults(command=_evaluate)

    predict = commands.add_parser("predict", help="what a fine-tuned model says of texts, as JSON lines")
    predict.add_argument("texts", nargs="*", metavar="TEXT", help="tasks of two texts take them two by two")
    predict.add_argument("--model", type=Path, required=True, metavar="DIR", help="what `finetune` wrote")
    predict.add_argument("--input", action="append", default=[], metavar="FILE", help="jsonl, csv, parquet, txt ...")
    predict.add_argument("--batch-size", type=int, default=16, metavar="N", help="texts at once (16)")
    predict.set_defaults(command=_predict)


def _add_shared(parser: argparse.ArgumentParser, task: str) -> None:
    kind = TASKS[task]
    parser.add_argument("--model", required=True, metavar="DIR", help="an export, or any local folder of transformers")
    parser.add_argument("--train", required=True, metavar="F", help="a file, or datasets:NAME[@CONFIG][#SPLIT]")
    parser.add_argument("--validation", required=True, metavar="F", help="chooses the best checkpoint")
    parser.add_argument("--test", metavar="F", help="measured once, with the best checkpoint")
    parser.add_argument("--output", required=True, metavar="DIR", help="the model, results.json, tensorboard/")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, metavar="N", help="of new weights, order and dropout (1)")
    seeds.add_argument("--seeds", type=_numbers, metavar="A,B,C", help="one after the other, and a table over them")
    parser.add_argument("--epochs", type=float, metavar="N", help=f"({kind.epochs:g})")
    parser.add_argument("--max-steps", type=int, metavar="N", help="optimizer steps, in place of epochs")
    parser.add_argument("--learning-rate", type=float, metavar="R", help="the highest (by the width of the encoder)")
    parser.add_argument("--warmup-ratio", type=float, metavar="R", help="share of the steps (0.1)")
    parser.add_argument("--weight-decay", type=float, metavar="R", help="(0.01)")
    parser.add_argument("--global-batch-size", type=int, metavar="N", help=f"rows a step ({kind.global_batch_size})")
    parser.add_argument("--micro-batch-size", type=int, metavar="N", help="at once on a device (a rank's share)")
    parser.add_argument("--max-length", type=int, metavar="N", help=f"tokens of an input ({kind.max_length})")
    parser.add_argument("--validate-steps", type=int, metavar="N", help="validate every N steps (every epoch)")
    parser.add_argument("--patience", type=int, metavar="N", help="end after N validations without a better one")
    parser.add_argument("--precision", choices=PRECISIONS, help="(auto: bf16 on GPUs that have it, else fp32)")
    parser.add_argument("--deepspeed", metavar="FILE", help="ds_configs/zero2.json or another")
    parser.add_argument("--repair", action="store_true", default=None, help="count bad rows instead of ending at one")


def _add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    flag, default = f"--{option.name.replace('_', '-')}", "" if option.default is None else f" ({option.default})"
    if option.kind is bool:
        parser.add_argument(flag, dest=option.name, action="store_true", default=None, help=option.help)
        return
    choices = option.choices or None
    metavar = None if choices else "N" if option.kind is not str else "X"
    words = f"{option.help}{default}"
    parser.add_argument(flag, dest=option.name, type=option.kind, choices=choices, metavar=metavar, help=words)


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers such as 1,2,3") from None
    if len(set(numbers)) < len(numbers):
        raise argparse.ArgumentTypeError(f"{text!r} names a seed twice")
    return numbers


def _settings(options: argparse.Namespace) -> Settings:
    given = {name: value for name, value in vars(options).items() if name not in ("command", "seeds", "task")}
    return settings_for(options.task, **given)


def _finetune(options: argparse.Namespace) -> int:
    def action(stop: Any) -> None:
        with the_same_everywhere():
            settings = _settings(options)
        _with_others(lambda: _trained(settings, options.seeds, stop))

    return _as_rank(action)


def _evaluate(options: argparse.Namespace) -> int:
    return _as_rank(lambda stop: _with_others(lambda: _evaluated(options, stop)))


def _evaluated(options: argparse.Namespace, stop: Any) -> None:
    from train.finetune.evaluate import evaluate
    from train.monitor.logs import log

    places = (options.model, options.suite, options.data, options.output.absolute())
    for line in evaluate(*places, stop, seeds=options.seeds, skip_absent=options.skip_absent):
        log.info("  %s", line)
    log.info("%s has this table as results.md and results.json, and a folder for each task.", options.output)


def _as_rank(action: Callable[[Any], None]) -> int:
    """Call `action` with what asks it to stop; where all ranks meet one mistake, the first of them tells it."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # or DDP warns of a search that some models need
    from train.launch import launch_listens
    from train.monitor.logs import start_logging
    from train.rank_discovery import adopt
    from train.signals import StopRequest

    stop = StopRequest()
    stop.install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # `launch` blocks it until somebody listens
    adopt(os.environ)
    rank = int(os.environ.get("RANK", "0"))
    start_logging(rank)
    try:
        action(stop)
    except BertmaeError as error:
        if error.everywhere and rank != 0 and not launch_listens():
            stop.wait(_FIRST_RANK_SPEAKS)  # torchrun ends all ranks with the first that ends: here the silent one
        raise
    return 0


def _with_others(action: Callable[[], None]) -> None:
    """Call `action`, in which the ranks meet; a rank that is lost to the others is one line."""
    from train.finetune.packages import require

    require("accelerate")
    from train import distributed

    try:
        action()
    except RuntimeError as error:
        if distributed.is_of_lost_rank(error):
            raise BertmaeError("the connection to another rank is gone, which has ended") from error
        raise
    distributed.finish()


def _trained(settings: Settings, seeds: list[int] | None, stop: Any) -> None:
    from train.finetune import results
    from train.finetune.seeds import finetune_seeds
    from train.finetune.training import finetune
    from train.monitor.logs import log

    if seeds:
        spread = finetune_seeds(settings, seeds, stop)["metrics"]
    else:
        report = finetune(settings, stop)
        spread = results.over_seeds({settings.seed: report})
    for line in results.table(spread):
        log.info("  %s", line)
    log.info("%s has the model, results.json, the predictions and tensorboard/.", settings.output)


def _predict(options: argparse.Namespace) -> int:
    os.environ["HF_HUB_OFFLINE"] = "1"  # a folder that lacks a file is a mistake, not a reason to ask the hub
    from train.finetune.predict import predict
    from train.monitor.logs import start_logging

    start_logging(0)
    if options.batch_size < 1:
        raise UserError(f"--batch-size {options.batch_size}: must be above 0")
    for answer in predict(options.model, options.texts, options.input, options.batch_size):
        sys.stdout.write(json.dumps(answer, ensure_ascii=False) + "\n")
        sys.stdout.flush()
    return 0
