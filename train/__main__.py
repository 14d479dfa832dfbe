"""The command line of training: parse, call, exit code."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from train.errors import BertmaeError, UserError
from train.finetune.command_line import add_commands as add_finetuning
from train.launch import launch_listens, may_be_started_again, tell_launch
from train.rank_discovery import adopt, may_speak

_FIRST_RANK_SPEAKS = 30.0  # seconds that it may start later than the others


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an expected failure is one line on stderr and its exit code."""
    options = _options(arguments)
    try:
        code: int = options.command(options)
        sys.stdout.flush()
    except BertmaeError as error:
        if not error.everywhere or may_speak(os.environ):
            print(f"bertmae: {error}", file=sys.stderr)
        code = tell_launch(error.exit_code) if error.everywhere else error.exit_code
    except BrokenPipeError:  # the reader of a pipe (head, less) went away; what Python flushes at its end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        code = 130
    return code


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; overrides may stand behind options, too, where argparse leaves them over."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and not (hasattr(options, "overrides") and all("=" in word and word[0] != "-" for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    pretrain = commands.add_parser("pretrain", help="train a model on shards; start it with torchrun for several ranks")
    pretrain.add_argument("config", type=Path, metavar="CONFIG.yaml")
    pretrain.add_argument("overrides", nargs="*", metavar="key.sub=value")
    pretrain.add_argument("--max-minutes", metavar="M", help="stop after M minutes, as run.max_minutes=M does")
    pretrain.add_argument("--dry-run", action="store_true", help="check everything, print what would happen, and end")
    pretrain.add_argument(
        "--find-micro-batch",
        action="store_true",
        help="first try what fits and is fastest, and use that as batch.micro_batch_size; the result stays the same",
    )
    pretrain.set_defaults(command=_pretrain)

    check = commands.add_parser("check", help="what a run would meet here, a line each; nothing is trained or written")
    check.add_argument("config", type=Path, metavar="CONFIG.yaml")
    check.add_argument("overrides", nargs="*", metavar="key.sub=value")
    check.set_defaults(command=_check)

    data = commands.add_parser(
        "data-report", help="what a run will read, and its first rows in words; nothing is written"
    )
    data.add_argument("config", type=Path, metavar="CONFIG.yaml")
    data.add_argument("overrides", nargs="*", metavar="key.sub=value")
    data.add_argument("--rows", type=int, default=3, metavar="N", help="rows of step 0 to show (3)")
    data.add_argument("--incident", type=int, metavar="STEP", help="the rows of an incident of the run instead")
    data.set_defaults(command=_data_report)

    cost = commands.add_parser(
        "estimate",
        help="memory, arithmetic, communication and days of a run on given GPUs; needs neither these nor shards",
    )
    cost.add_argument("config", type=Path, metavar="CONFIG.yaml")
    cost.add_argument("overrides", nargs="*", metavar="key.sub=value")
    cost.add_argument("--gpus", type=_at_least(1), default=8, metavar="N", help="all together (8)")
    cost.add_argument("--gpu", default="H100", metavar="NAME", help="H100, A100, 'RTX 4090', ... (H100)")
    cost.add_argument("--gpus-per-node", type=_at_least(1), default=8, metavar="G", help="(8)")
    cost.add_argument("--network-gbit", type=_above_0, default=400.0, metavar="B", help="of a node, in Gbit/s (400)")
    cost.add_argument("--mfu", type=_above_0, default=0.4, metavar="F", help="of a device alone, as in metrics (0.4)")
    cost.add_argument("--vocab-size", type=_at_least(1), metavar="V", help="where there are no shards to say it")
    cost.add_argument("--json", action="store_true", help="the same numbers for machines")
    cost.set_defaults(command=_estimate)

    # Everything after `launch` is torchrun's or the command's, dashes included.
    launch = commands.add_parser("launch", prefix_chars="\0", add_help=False, help="torchrun with our exit codes")
    launch.add_argument("arguments", nargs="*", metavar="[torchrun options] pretrain CONFIG.yaml [key.sub=value ...]")
    launch.set_defaults(command=_launch)

    submit = commands.add_parser("submit", help="pretrain as a SLURM job that queues itself again until it is done")
    submit.add_argument("config", type=Path, metavar="CONFIG.yaml")
    submit.add_argument("overrides", nargs="*", metavar="key.sub=value")
    submit.add_argument("--nodes", type=_at_least(1), default=1, metavar="N")
    submit.add_argument("--gpus-per-node", type=int, default=8, metavar="G", help="0 for nodes without (8)")
    submit.add_argument("--processes-per-node", type=_at_least(1), metavar="P", help="where they are not the GPUs")
    submit.add_argument("--time", required=True, metavar="H:M:S", help="limit of a start, as sbatch takes it")
    submit.add_argument("--save-seconds", type=_at_least(1), default=180, metavar="S", help="of it, to save in (180)")
    for option in ("account", "partition", "qos", "cpus-per-task", "mem", "constraint"):
        submit.add_argument(f"--{option}", metavar="X", help="as sbatch takes it")
    submit.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="another: --sbatch=--exclusive")
    submit.add_argument("--dry-run", action="store_true", help="show the script and submit nothing")
    submit.set_defaults(command=_submit)

    export = commands.add_parser("export", help="write a run's newest checkpoint as a transformers model")
    export.add_argument("run", type=Path, metavar="RUN")
    export.add_argument("--output", type=Path, required=True, metavar="DIR")
    export.add_argument("--step", type=int, metavar="N", help="the checkpoint of this step instead of the newest")
    export.set_defaults(command=_export)

    mean = commands.add_parser("average", help="write the mean of a run's last checkpoints as a transformers model")
    mean.add_argument("run", type=Path, metavar="RUN")
    mean.add_argument(
        "--last", type=_at_least(1), default=5, metavar="N", help="newest whole checkpoints to average (5)"
    )
    mean.add_argument("--output", type=Path, required=True, metavar="DIR")
    mean.set_defaults(command=_average)

    same = commands.add_parser("compare", help="whether two models are the same, and where not; exit code 0 or 1")
    same.add_argument(
        "models", type=Path, nargs=2, metavar="MODEL", help="an export, any transformers folder, a run or a checkpoint"
    )
    same.add_argument("--tolerance", type=float, default=0.0, metavar="X", help="differences up to X count as none (0)")
    same.add_argument("--text", nargs="+", default=[], metavar="TEXT", help="also compare the outputs on these texts")
    same.add_argument(
        "--rows", type=_at_least(1), default=20, metavar="N", help="tensors to list, the most different first (20)"
    )
    same.set_defaults(command=_compare)

    probe = commands.add_parser("probe", help="what a frozen encoder is good for: linear probe, similarity, retrieval")
    probe.add_argument("model", type=Path, metavar="MODEL", help="an export, or any local folder of transformers")
    for kind, metavar, words in (
        (
            "classification",
            "F",
            "a folder with train.* and validation.*, dev.* or test.*; or a file; {text, label}",
        ),
        ("similarity", "F", "a file of {a, b, score}"),
        ("retrieval", "DIR", "corpus.jsonl, queries.jsonl and qrels/, as BEIR has them"),
    ):
        probe.add_argument(f"--{kind}", action="append", default=[], metavar=metavar, help=words)
    probe.add_argument(
        "--max-texts", type=_at_least(2), default=20_000, metavar="N", help="most rows of a file (20,000)"
    )
    probe.add_argument("--max-length", type=_at_least(8), default=128, metavar="N", help="tokens of a text (128)")
    probe.add_argument("--output", type=Path, metavar="FILE", help="the numbers as JSON too")
    probe.set_defaults(command=_probe)

    fill = commands.add_parser("fill-mask", help="the best five tokens for every [MASK] of a text")
    fill.add_argument("model", type=Path, metavar="DIR")
    fill.add_argument("texts", nargs="+", metavar="TEXT")
    fill.set_defaults(command=_fill_mask)

    state = commands.add_parser("status", help="one screen on a run: alive or not, step, loss, speed, time left")
    state.add_argument("run", type=Path, metavar="RUN")
    state.set_defaults(command=_status)

    beside = commands.add_parser("compare-runs", help="runs beside each other: a table, and their curves as a picture")
    beside.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    beside.add_argument(
        "--output", type=Path, default=Path("curves.png"), metavar="FILE.png", help="the picture (curves.png)"
    )
    beside.set_defaults(command=_compare_runs)

    page = commands.add_parser("report", help="all about a run on one HTML page: curves, incidents, samples, settings")
    page.add_argument("run", type=Path, metavar="RUN")
    page.add_argument("--output", type=Path, metavar="FILE.html", help="the page (RUN/report.html)")
    page.set_defaults(command=_report)

    add_finetuning(commands)

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
    from train.monitor.writers import refuse_missing
    from train.signals import StopRequest

    stop = StopRequest()
    stop.install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})  # `launch` blocks it until somebody listens
    adopt(os.environ)
    limit = [f"run.max_minutes={options.max_minutes}"] if options.max_minutes is not None else []
    try:
        config = load_config(options.config, [*options.overrides, *limit])
        refuse_missing(config.logging.writers)
    except BertmaeError as error:
        error.everywhere = True  # every rank reads the same words
        if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
            may_be_started_again()
        if os.environ.get("RANK", "0") != "0" and not launch_listens():
            stop.wait(_FIRST_RANK_SPEAKS)  # torchrun ends all ranks with the first that ends: here the silent one
        raise
    start_logging(int(os.environ.get("RANK", "0")))
    from train import distributed, pretrain

    if options.dry_run and options.find_micro_batch:
        raise UserError.agreed("--dry-run trains nothing, so --find-micro-batch finds nothing: leave one of them out")
    if options.dry_run:
        for line in pretrain.dry_run(config):
            if os.environ.get("RANK", "0") == "0":
                print(line)
        return 0
    try:
        pretrain.pretrain(config, stop, find_micro_batch=options.find_micro_batch)
    except BertmaeError as error:
        if error.everywhere:
            distributed.finish()
        raise
    except RuntimeError as error:
        if distributed.is_of_lost_rank(error):
            rank = os.environ.get("RANK", "0")
            raise BertmaeError(f"rank {rank}: the connection to another rank is gone, which has ended") from error
        raise
    distributed.finish()
    return 0


def _check(options: argparse.Namespace) -> int:
    from train.config_file import load_config
    from train.monitor.logs import start_logging

    adopt(os.environ)
    try:
        config = load_config(options.config, options.overrides)
    except BertmaeError as error:
        error.everywhere = True  # every rank reads the same words
        raise
    start_logging(int(os.environ.get("RANK", "0")))
    from train import distributed
    from train.preflight.check import check

    code = 0
    for finding in check(config):
        if finding.text:
            print(finding, flush=True)
        code = tell_launch(UserError.exit_code) if finding.level == "wrong" else code
    distributed.finish()
    return code


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


def _estimate(options: argparse.Namespace) -> int:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a GPU that is here has nothing to do with it
    from train.config_file import load_config
    from train.estimate import plan, report

    cluster = plan.Cluster(
        plan.find_gpu(options.gpu), options.gpus, options.gpus_per_node, options.network_gbit, options.mfu
    )
    config = load_config(options.config, options.overrides, assumed_data=plan.NO_DATA)
    found = plan.estimate(config, cluster, options.vocab_size)
    if options.json:
        print(json.dumps(report.as_json(cluster, found), indent=2))
        return 0
    for line in report.lines(config, cluster, found):
        print(line)
    return 0


def _launch(options: argparse.Namespace) -> int:
    from train.launch import launch

    return launch(options.arguments)


def _submit(options: argparse.Namespace) -> int:
    from train.config_file import load_config
    from train.submit import Job, submit

    named = ("account", "partition", "qos", "cpus_per_task", "mem", "constraint")
    given = {name.replace("_", "-"): getattr(options, name) for name in named}
    others = [f"--{name}={value}" for name, value in given.items() if value is not None] + options.sbatch
    gpus, processes = options.gpus_per_node, options.processes_per_node
    job = Job(options.nodes, gpus, processes, options.time, options.save_seconds, tuple(others))
    for sentence in submit(load_config(options.config, options.overrides), job, dry_run=options.dry_run):
        print(sentence)
    return 0


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} on")
        return int(text)

    return number


def _above_0(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def _export(options: argparse.Namespace) -> int:
    from train.export import export

    for sentence in export(options.run, options.output, options.step):
        print(sentence)
    return 0


def _average(options: argparse.Namespace) -> int:
    from train.average import average

    for sentence in average(options.run, options.output, options.last):
        print(sentence)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from train.compare import compare

    report = compare(*options.models, tolerance=options.tolerance, texts=options.text, rows=options.rows)
    print("\n".join(report.lines))
    return 0 if report.same else 1


def _probe(options: argparse.Namespace) -> int:
    from train.probes.command import KINDS, probe_model, probe_settings

    paths = {kind: getattr(options, kind) for kind in KINDS}
    settings = probe_settings(paths, options.max_texts, options.max_length)
    for line in probe_model(options.model, settings, options.output):
        print(line)
    return 0


def _fill_mask(options: argparse.Namespace) -> int:
    from train.fill_mask import fill_mask

    for line in fill_mask(options.model, options.texts):
        print(line)
    return 0


def _status(options: argparse.Namespace) -> int:
    from train.status import status

    for line in status(options.run):
        print(line)
    return 0


def _compare_runs(options: argparse.Namespace) -> int:
    from train.reports.compare_runs import compare_runs

    for line in compare_runs(options.runs, options.output):
        print(line)
    return 0


def _report(options: argparse.Namespace) -> int:
    from train.reports.page import report

    print(report(options.run, options.output))
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
