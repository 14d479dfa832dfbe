"""What a fine-tuning is asked for: the settings that all tasks share, each task's defaults and its own options.

Light on purpose: the command line reads it without torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from train.errors import UserError

METHODS = ("pair", "cosine")
POOLINGS = ("mean", "cls")
SCHEMES = ("auto", "bio", "iob1", "bioes")
PRECISIONS = ("auto", "bf16", "fp16", "fp32")


@dataclass(frozen=True, slots=True)
class Option:
    """An option that one task alone has: `--name` on the command line, `settings.options[name]` in the code."""

    name: str  # with underscores
    help: str
    kind: type = str  # bool for a switch
    default: Any = None
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TaskKind:
    """A task's defaults, where the user gives nothing."""

    help: str
    inputs: tuple[str, ...]  # names of the texts that one prediction takes; a name in brackets may be left out
    epochs: float
    max_length: int  # tokens
    learning_rate_factor: float = 1.0  # of the rate that belongs to the size of the encoder
    global_batch_size: int = 32
    options: tuple[Option, ...] = ()


_COLUMNS = (
    Option("text", "column of the text (default: the usual names are looked for)"),
    Option("text_pair", "column of the second text, where a row has two"),
)
TASKS: dict[str, TaskKind] = {
    "classification": TaskKind(
        help="a label for a text or for a pair of texts",
        inputs=("text", "[text_pair]"),
        epochs=3,
        max_length=256,
        options=(*_COLUMNS, Option("label", "column of the label")),
    ),
    "similarity": TaskKind(
        help="a number for how alike two texts are",
        inputs=("text", "text_pair"),
        epochs=4,
        max_length=128,
        options=(
            *_COLUMNS,
            Option("score", "column of the number"),
            Option("method", "one encoder over both texts, or cosine of a vector each", str, "pair", METHODS),
            Option("pooling", "the vector of a text, for --method cosine", str, "mean", POOLINGS),
        ),
    ),
    "ner": TaskKind(
        help="named entities: a tag for each word, out of CoNLL files",
        inputs=("text",),
        epochs=5,
        max_length=256,
        learning_rate_factor=1.5,
        options=(Option("scheme", "of the tags in the files", str, "auto", SCHEMES),),
    ),
    "qa": TaskKind(
        help="the span of a context that answers a question, out of SQuAD-format JSON",
        inputs=("question", "context"),
        epochs=3,
        max_length=384,
        options=(
            Option("stride", "tokens that neighbouring windows of a long context share (128, or a third of them)", int),
            Option("max_answer_length", "tokens of the longest span that is predicted (99%% of training's)", int),
            Option("language", "zh: score as CMRC 2018 does; another: as SQuAD (by the script of the answers)"),
        ),
    ),
    "translation": TaskKind(
        help="a text in another language; --train takes PREFIX of two parallel files such as PREFIX.en and PREFIX.zh",
        inputs=("text",),
        epochs=10,
        max_length=128,
        learning_rate_factor=2.0,  # the attention to the encoder is new
        global_batch_size=64,
        options=(
            Option("source_language", "end of the source files, or the source's column"),
            Option("target_language", "end of the target files, or the target's column"),
            Option("target_model", "folder of a BERT whose weights and vocabulary the decoder takes (--model)", str),
            Option("decoder", "where its weights come from", str, "auto", ("auto", "encoder", "pretrained", "new")),
            Option("max_target_length", "tokens of a translation (128)", int),
            Option("label_smoothing", "share of the target that all tokens divide", float, 0.1),
            Option("num_beams", "translations that are followed at once", int, 4),
            Option("length_penalty", "above 0 favours long translations, below short ones", float, 1.0),
        ),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One fine-tuning. Numbers that are None follow from the task, the model and the device."""

    task: str
    model: Path
    train: str  # a file, or datasets:NAME[@CONFIG][#SPLIT]
    validation: str
    output: Path
    test: str | None = None
    seed: int = 1
    learning_rate: float | None = None
    epochs: float | None = None
    max_steps: int | None = None  # optimizer steps, in place of epochs
    global_batch_size: int | None = None  # rows of an optimizer step, over all ranks
    micro_batch_size: int | None = None  # rows at once on a device
    max_length: int | None = None  # tokens
    warmup_ratio: float = 0.1  # of all steps
    weight_decay: float = 0.01
    validate_steps: int | None = None  # validate every so many steps instead of every epoch
    patience: int | None = None  # validations without a better result after which training ends
    precision: str = "auto"
    deepspeed: Path | None = None
    repair: bool = False  # count and repair or leave out bad rows instead of ending at the first
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> TaskKind:
        return TASKS[self.task]

    def as_json(self) -> dict[str, Any]:
        """Everything as plain values."""
        plain = asdict(self)
        return {name: str(value) if isinstance(value, Path) else value for name, value in plain.items()}


def settings_for(task: str, **given: Any) -> Settings:
    """The settings of a task from names and values; what is None or missing takes its default.

    A name may be a field of `Settings` or an option of the task. Raises UserError for an unknown task or name, and for
    an impossible value.
    """
    if task not in TASKS:
        raise UserError(f"unknown task {task!r}{_hint(task, TASKS)}")
    options = {option.name: option.default for option in TASKS[task].options}
    shared = {field.name for field in fields(Settings)} - {"task", "options"}
    if unknown := sorted(given.keys() - shared - options.keys()):
        raise UserError(f"{task} has no setting {unknown[0]!r}{_hint(unknown[0], shared | options.keys())}")
    given = {name: value for name, value in given.items() if value is not None}
    options |= {name: value for name, value in given.items() if name in options}
    own = {name: value for name, value in given.items() if name in shared}
    for name in ("model", "output", "deepspeed"):
        if name in own:
            own[name] = Path(own[name])
    if missing := [name for name in ("model", "train", "validation", "output") if name not in own]:
        raise UserError(f"{task}: --{missing[0]} is missing")
    kind = TASKS[task]
    own.setdefault("epochs", kind.epochs)
    own.setdefault("global_batch_size", kind.global_batch_size)
    settings = Settings(task=task, options=options, **own)
    _check(settings)
    return settings


def _check(settings: Settings) -> None:
    above_zero = ("learning_rate", "epochs", "max_steps", "global_batch_size", "micro_batch_size", "max_length")
    for name in (*above_zero, "validate_steps", "patience"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {value}: must be above 0")
    for name, below in (("warmup_ratio", 1.0), ("weight_decay", float("inf"))):
        if not 0 <= getattr(settings, name) < below:
            limit = f" and below {below:g}" if below < float("inf") else ""
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: must be 0 or more{limit}")
    if settings.precision not in PRECISIONS:
        raise UserError(f"--precision {settings.precision}: not one of {', '.join(PRECISIONS)}")
    if not 0 <= settings.seed < 1 << 32:
        raise UserError(f"--seed {settings.seed}: must be 0 or more and below 2^32")


def _hint(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else f" (known: {', '.join(sorted(known))})"
