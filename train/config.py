"""Owns the run configuration: its typed fields, the YAML that holds them, and what a mistake in it says."""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from data_pipeline.errors import UserError

Beta = Annotated[float, Field(ge=0, lt=1)]
Tree = dict[str, Any]

# ---------------------------------------------------------------------------------------------------------------------
# The fields


class Section(BaseModel):
    """A group of fields: no unknown keys, no conversion between types, no infinities, no change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False, protected_namespaces=())


class Run(Section):
    """The run as a whole."""

    directory: str = Field(
        default="runs/default",
        min_length=1,
        description="Folder that receives the resolved configuration, metrics, logs and checkpoints of the run.",
    )
    seed: int = Field(
        default=0,
        ge=0,
        lt=2**63,
        description="Seed of every random choice: weights, data order, masks and dropout.",
    )
    steps: int = Field(default=100_000, gt=0, description="Length of the run in optimizer steps.")


class Data(Section):
    """The data set. Vocabulary, special tokens and tokenizer come from its manifest and are no fields."""

    path: str = Field(
        min_length=1,
        description="Data set directory with its manifest.json, as written by `python -m data_pipeline build`.",
    )
    sequence_length: int = Field(
        default=512,
        ge=8,
        le=8192,
        description="Most tokens in a packed row, [CLS] and [SEP] of every document piece included.",
    )


class Encoder(Section):
    """The encoder, in the names of the transformers library. Attention dropout is no field: the padding-free attention
    kernel has none, so it is always 0."""

    model_type: Literal["bert"] = Field(default="bert", description="Architecture in the transformers library.")
    hidden_size: int = Field(default=768, gt=0, description="Width of the hidden states.")
    num_hidden_layers: int = Field(default=12, gt=0, description="Number of transformer layers.")
    num_attention_heads: int = Field(default=12, gt=0, description="Attention heads; they divide hidden_size.")
    intermediate_size: int = Field(default=3072, gt=0, description="Width inside the feed-forward blocks.")
    max_position_embeddings: int = Field(
        default=512, gt=0, description="Learned positions, in tokens: the longest document piece the model can read."
    )
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = Field(
        default="gelu", description="Activation of the feed-forward blocks and of the MLM head."
    )
    hidden_dropout_prob: float = Field(
        default=0.1, ge=0, lt=1, description="Dropout after the embeddings and after every sublayer (0: none)."
    )
    layer_norm_eps: float = Field(default=1e-12, gt=0, description="Epsilon inside the layer normalizations.")
    initializer_range: float = Field(
        default=0.02, gt=0, description="Standard deviation of the normal distribution that weights start from."
    )


class Decoder(Section):
    """The decoder of the objectives mae and joint; mlm has none. Sizes that are not set here are as in the
    encoder; the activation is always GELU."""

    num_hidden_layers: int = Field(default=2, gt=0, description="Number of transformer layers.")
    hidden_size: int | None = Field(
        default=None, gt=0, description="Width of the hidden states (null: the encoder's hidden_size)."
    )
    num_attention_heads: int | None = Field(
        default=None,
        gt=0,
        description="Attention heads; they divide the decoder's hidden_size (null: the encoder's num_attention_heads).",
    )
    intermediate_size: int | None = Field(
        default=None, gt=0, description="Width inside the feed-forward blocks (null: the encoder's intermediate_size)."
    )


class DecoderSizes(NamedTuple):
    """The decoder as it is built: nothing left open."""

    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    intermediate_size: int


class Model(Section):
    """The network around the vocabulary, whose size comes from the data set."""

    gradient_checkpointing: bool = Field(
        default=True,
        description="Recompute the activations of a layer in the backward pass: less memory for about a third more "
        "arithmetic.",
    )
    encoder: Encoder = Field(default=Encoder(), description="The encoder.")
    decoder: Decoder = Field(default=Decoder(), description="The decoder.")

    def resolved_decoder(self) -> DecoderSizes:
        """The decoder's sizes, with the encoder's in the place of every null."""
        own, encoder = self.decoder, self.encoder
        return DecoderSizes(
            num_hidden_layers=own.num_hidden_layers,
            hidden_size=own.hidden_size or encoder.hidden_size,
            num_attention_heads=own.num_attention_heads or encoder.num_attention_heads,
            intermediate_size=own.intermediate_size or encoder.intermediate_size,
        )


class Objective(Section):
    """What the model learns from. mlm: masked tokens are predicted at the encoder's output. mae: the encoder never sees
    the dropped tokens and the decoder predicts them. joint: both at once, MLM on the tokens that the encoder keeps."""

    name: Literal["mlm", "mae", "joint"] = Field(default="mlm", description="Pretraining objective.")
    mask_ratio: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="mlm and joint: share of a document piece's ordinary tokens (joint: of those the encoder keeps) "
        "that become MLM targets.",
    )
    mask_token_share: float = Field(
        default=0.8, ge=0, le=1, description="mlm and joint: share of the MLM targets replaced by [MASK]."
    )
    random_token_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="mlm and joint: share of the MLM targets replaced by a random ordinary token; what the two shares "
        "leave over stays unchanged.",
    )
    drop_ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="mae and joint: share of a document piece's ordinary tokens that the encoder never sees and the "
        "decoder predicts.",
    )
    mlm_weight: float = Field(default=1.0, ge=0, description="joint: weight of the MLM loss in the sum.")
    reconstruction_weight: float = Field(
        default=1.0, ge=0, description="joint: weight of the decoder's reconstruction loss in the sum."
    )


class Batch(Section):
    """Batch sizes in packed rows. The accumulation steps follow: global / (micro x devices)."""

    global_batch_size: int = Field(default=256, gt=0, description="Rows per optimizer step, over all devices.")
    micro_batch_size: int = Field(
        default=8, gt=0, description="Rows per device in one forward pass; it decides memory, not the result."
    )


class Optimizer(Section):
    """AdamW with decoupled weight decay."""

    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate, reached after the warmup.")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.98), strict=False, description="Decay rates of the two moment averages, a list of two."
    )
    eps: float = Field(default=1e-6, gt=0, description="Added to the denominator of the update.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled weight decay of the matrices; biases and layer norms have none."
    )
    gradient_clipping: float = Field(
        default=1.0, ge=0, description="Largest L2 norm of the gradient over all parameters (0: no clipping)."
    )


class Schedule(Section):
    """The learning rate over the run: a linear warmup from 0 to the peak, then the named shape."""

    name: Literal["linear", "cosine", "constant", "warmup_stable_decay"] = Field(
        default="linear", description="Shape after the warmup; warmup_stable_decay holds the peak, then falls linearly."
    )
    warmup_steps: int = Field(default=10_000, ge=0, description="Length of the warmup in optimizer steps.")
    final_learning_rate_ratio: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Learning rate at the last step as a share of the peak; constant does not use it.",
    )
    decay_steps: int | None = Field(
        default=None,
        gt=0,
        description="warmup_stable_decay only: length of the closing decay in optimizer steps (null: 10 % of "
        "run.steps).",
    )


class Engine(Section):
    """DeepSpeed and the arithmetic."""

    ds_config: str = Field(
        default="ds_configs/zero2.json",
        min_length=1,
        description="DeepSpeed configuration (JSON): ZeRO stage and offload. A path from the working directory.",
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="bf16", description="Number format of forward and backward passes; master weights are always fp32."
    )


class Checkpoint(Section):
    """When the state of the run is saved."""

    interval_steps: int = Field(default=1000, gt=0, description="Optimizer steps between two checkpoints.")
    keep_last: int = Field(default=3, gt=0, description="Number of newest checkpoints kept on disk.")


class Validation(Section):
    """When the model is measured on the validation split."""

    interval_steps: int = Field(default=1000, gt=0, description="Optimizer steps between two validations.")
    max_rows: int = Field(default=2048, gt=0, description="Most packed rows of the split read in one validation.")


class Logging(Section):
    """When metrics are written."""

    interval_steps: int = Field(default=10, gt=0, description="Optimizer steps between two lines of metrics.")


class Config(Section):
    """A pretraining run."""

    run: Run = Field(default=Run(), description="The run as a whole.")
    data: Data = Field(description="The data set.")
    model: Model = Field(default=Model(), description="The network.")
    objective: Objective = Field(default=Objective(), description="What the model learns from.")
    batch: Batch = Field(default=Batch(), description="Batch sizes.")
    optimizer: Optimizer = Field(default=Optimizer(), description="AdamW.")
    schedule: Schedule = Field(default=Schedule(), description="The learning rate over the run.")
    engine: Engine = Field(default=Engine(), description="DeepSpeed and the arithmetic.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="When the state of the run is saved.")
    validation: Validation = Field(default=Validation(), description="When the model is measured.")
    logging: Logging = Field(default=Logging(), description="When metrics are written.")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        _check_model(self)
        _check_objective(self.objective)
        _check_batch(self.batch)
        _check_schedule(self)
        return self


# ---------------------------------------------------------------------------------------------------------------------
# Combinations that cannot work: the ValueErrors become part of pydantic's report


def _check_model(config: Config) -> None:
    encoder, length = config.model.encoder, config.data.sequence_length
    for part, sizes in (("encoder", encoder), ("decoder", config.model.resolved_decoder())):
        width, heads = sizes.hidden_size, sizes.num_attention_heads
        if width % heads:
            raise ValueError(
                f"model.{part}.hidden_size {width} is not divisible by model.{part}.num_attention_heads {heads}: "
                f"change one of them (the nearest width is {_nearest_multiples(width, heads)})"
            )
    if length > encoder.max_position_embeddings:
        raise ValueError(
            f"data.sequence_length {length} is above model.encoder.max_position_embeddings "
            f"{encoder.max_position_embeddings}: shorten the rows or raise the positions"
        )


def _check_objective(objective: Objective) -> None:
    masked, random = objective.mask_token_share, objective.random_token_share
    # Shares such as 0.57 and 0.43 are 1 to a reader; their binary sum may be a rounding error above it.
    if masked + random > 1 + 1e-9:
        raise ValueError(
            f"objective.mask_token_share {masked} and objective.random_token_share {random} are above 1 together: "
            "lower one of them"
        )
    if objective.name == "joint" and objective.mlm_weight == objective.reconstruction_weight == 0:
        raise ValueError(
            "objective.mlm_weight 0 and objective.reconstruction_weight 0 leave nothing to learn: raise one of them"
        )


def _check_batch(batch: Batch) -> None:
    rows, micro = batch.global_batch_size, batch.micro_batch_size
    if micro > rows:
        raise ValueError(
            f"batch.micro_batch_size {micro} is above batch.global_batch_size {rows}: lower the first or raise the "
            "second"
        )
    if rows % micro:
        raise ValueError(
            f"batch.global_batch_size {rows} is not divisible by batch.micro_batch_size {micro}: "
            f"use a global batch of {_nearest_multiples(rows, micro)}"
        )


def _check_schedule(config: Config) -> None:
    schedule, steps = config.schedule, config.run.steps
    if schedule.warmup_steps > steps:
        raise ValueError(
            f"schedule.warmup_steps {schedule.warmup_steps} is above run.steps {steps}: shorten the warmup or "
            "lengthen the run"
        )
    if schedule.name != "warmup_stable_decay":
        if schedule.decay_steps is not None:
            raise ValueError(
                f"schedule.decay_steps {schedule.decay_steps} has no meaning with schedule.name {schedule.name}: "
                "leave it out or use schedule.name warmup_stable_decay"
            )
    elif schedule.warmup_steps + decay_steps(config) > steps:
        raise ValueError(
            f"schedule.warmup_steps {schedule.warmup_steps} and schedule.decay_steps {decay_steps(config)} "
            f"are above run.steps {steps} together: shorten one of them or lengthen the run"
        )


def _nearest_multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


# ---------------------------------------------------------------------------------------------------------------------
# Values that follow from the fields


def decay_steps(config: Config) -> int:
    """Length in optimizer steps of the closing decay of a warmup_stable_decay schedule, at least 1."""
    return config.schedule.decay_steps or max(1, config.run.steps // 10)


def gradient_accumulation_steps(config: Config, world_size: int) -> int:
    """Forward passes per device and optimizer step on `world_size` devices.

    Raises UserError when the global batch does not divide evenly, naming the nearest sizes that do.
    """
    rows, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    rows_per_pass = micro * world_size
    if rows % rows_per_pass:
        raise UserError(
            f"batch.global_batch_size {rows} is not divisible by batch.micro_batch_size {micro} x {world_size} devices "
            f"= {rows_per_pass} rows: use a global batch of {_nearest_multiples(rows, rows_per_pass)}"
        )
    return rows // rows_per_pass


# ---------------------------------------------------------------------------------------------------------------------
# Reading and writing


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration in the YAML file `path`, with `key.sub=value` overrides (values are YAML) laid over it.

    Raises UserError with one line that names the place, the key, the value and the way out.
    """
    # Every section exists, so that a missing required key is reported under its own name.
    tree: Tree = {section: {} for section in Config.model_fields} | _read_tree(path)
    for override in overrides:
        _apply_override(tree, override)
    try:
        return Config.model_validate(tree)
    except ValidationError as exc:
        mistakes = exc.errors(include_url=False)
    # An unknown key first: a required key reported as missing is often the same key, misspelt.
    mistakes.sort(key=lambda mistake: mistake["type"] != "extra_forbidden")
    more = f" (and {len(mistakes) - 1} more)" if len(mistakes) > 1 else ""
    source = _source(mistakes[0]["loc"], path, overrides)
    raise UserError(f"{source}: {_describe(mistakes[0])}{more}")


def dump_config(config: Config) -> str:
    """The whole configuration as YAML, in the order of the fields; `load_config` reads it back equal."""
    return str(
        yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)
    )


def differences(a: Config, b: Config, sections: Sequence[str]) -> list[tuple[str, Any, Any]]:
    """(dotted key, value in a, value in b) of the fields that differ, in the order of the fields.

    `sections` are dotted names of sections or fields ("model", "run.seed"); fields outside them are not compared.
    Raises KeyError for a name that does not exist.
    """
    for name in sections:
        if _field(name.split(".")) is None:
            raise KeyError(name)
    pairs = zip(_leaves(a.model_dump()), _leaves(b.model_dump()), strict=True)
    return [
        (key, left, right)
        for (key, left), (_, right) in pairs
        if left != right and any(_within(key, section) for section in sections)
    ]


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _read_tree(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as exc:
        raise UserError(f"{path}: cannot be read ({exc.strerror})") from None
    except UnicodeDecodeError as exc:
        raise UserError(f"{path}: not UTF-8 text (byte {exc.start}); save the file as UTF-8") from None
    tree = _parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        what = "empty" if tree is None else f"{_show(tree)} is not a mapping"
        raise UserError(f"{path}: {what}; a configuration is sections such as run:, data: and model:")
    return tree


def _apply_override(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.isprintable():
        raise UserError(f"command line: {override!r} is not an override; write it as key.sub=value")
    *parents, name = names = tuple(key.split("."))
    if _field(names) is None:
        raise UserError(f"command line: {_unknown_key(names)}")
    for depth, parent in enumerate(parents, 1):
        inner = tree.get(parent, {})
        if not isinstance(inner, dict):
            section = ".".join(parents[:depth])
            raise UserError(f"command line: {override!r}: in the file, {section} is {_show(inner)} and not a section")
        # A copy, because an alias in the file puts one mapping in two places.
        tree[parent] = dict(inner)
        tree = tree[parent]
    tree[name] = _parse_yaml(text, f"command line: {override!r}")


# ---------------------------------------------------------------------------------------------------------------------
# YAML 1.2: PyYAML follows 1.1, where 1e-4 is text, on and no are booleans, 010 is 8 and 1:30 is 90

_TAG = "tag:yaml.org,2002:"
# tag: (what a plain scalar looks like, its possible first characters, its value)
_PLAIN_SCALARS: dict[str, tuple[re.Pattern[str], str, Callable[[str], object]]] = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)\Z"), "~nN", lambda text: None),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z"), "tTfF", lambda text: text.lower() == "true"),
    "int": (re.compile(r"[-+]?[0-9]+\Z"), "-+0123456789", int),
    "float": (re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z"), "-+.0123456789", float),
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML ships no types
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012  # PyYAML's way: add_implicit_resolver fills it
    yaml_constructors = {  # noqa: RUF012
        tag: yaml.SafeLoader.yaml_constructors[tag] for tag in (None, f"{_TAG}str", f"{_TAG}seq")
    }


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    # The reader's rules decide what is quoted, or the text "1e4" would come back as a number.
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def _construct_plain(loader: _Loader, node: yaml.ScalarNode) -> object:
    pattern, _, convert = _PLAIN_SCALARS[node.tag.removeprefix(_TAG)]
    text = loader.construct_scalar(node)
    # A plain scalar has matched already; one with an explicit tag (!!int x) has not.
    if not pattern.match(text):
        raise yaml.constructor.ConstructorError(None, None, f"{text!r} is no {node.tag}", node.start_mark)
    return convert(text)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> Tree:
    tree: Tree = loader.construct_mapping(node, deep=True)
    lines: dict[str, int] = {}
    for key, _ in node.value:
        if key.tag != f"{_TAG}str" or not key.value.isprintable():
            raise yaml.constructor.ConstructorError(None, None, "a key that is not plain text", key.start_mark)
        if key.value in lines:
            problem = f"key {key.value} is written twice, first on line {lines[key.value]}"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        lines[key.value] = key.start_mark.line + 1
    return tree


for _name, (_pattern, _first, _) in _PLAIN_SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _name, _pattern, [*_first, ""] if _name == "null" else list(_first))
    _Loader.add_constructor(_TAG + _name, _construct_plain)
_Loader.add_constructor(f"{_TAG}map", _construct_mapping)
_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(f"{_TAG}seq", value, flow_style=True))


def _parse_yaml(text: str, source: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506  # a SafeLoader with fewer constructors
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        line = f" line {mark.line + 1}:" if mark else ""
        raise UserError(f"{source}:{line} not valid YAML ({exc.problem or exc.context})") from None
    except yaml.reader.ReaderError as exc:
        raise UserError(f"{source}: not valid YAML (character {exc.position}: {exc.reason})") from None


# ---------------------------------------------------------------------------------------------------------------------
# The fields as a list, and mistakes as sentences


class FieldRow(NamedTuple):
    """One field: the dotted name of its section, its own name, and its type, default and description."""

    section: str
    name: str
    info: FieldInfo

    @property
    def key(self) -> str:
        """The dotted name of the field."""
        return f"{self.section}.{self.name}"


def section_classes() -> dict[str, type[Section]]:
    """Every section by its dotted name, in the order of the fields."""
    return dict(_walk_sections(Config, ""))


def field_rows() -> list[FieldRow]:
    """Every field that holds a value (not a section), in the order of the sections."""
    return [
        FieldRow(section, name, info)
        for section, cls in section_classes().items()
        for name, info in cls.model_fields.items()
        if _section_class(info) is None
    ]


def _walk_sections(cls: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    for name, info in cls.model_fields.items():
        inner = _section_class(info)
        if inner is not None:
            yield prefix + name, inner
            yield from _walk_sections(inner, f"{prefix}{name}.")


def _section_class(info: FieldInfo) -> type[Section] | None:
    cls = info.annotation
    return cls if isinstance(cls, type) and issubclass(cls, Section) else None


def _field(names: Sequence[str]) -> FieldInfo | None:
    cls: type[Section] | None = Config
    info = None
    for name in names:
        info = cls.model_fields.get(name) if cls else None
        cls = _section_class(info) if info else None
    return info


def _source(loc: tuple[int | str, ...], path: Path, overrides: Sequence[str]) -> str:
    """Who wrote the value at `loc`: an override of it or of a section around it, or else the file."""
    key = ".".join(name for name in loc if isinstance(name, str))
    written = bool(key) and any(_within(key, override.partition("=")[0]) for override in overrides)
    return "command line" if written else str(path)


def _describe(mistake: ErrorDetails) -> str:
    kind, loc, context = mistake["type"], mistake["loc"], mistake.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "extra_forbidden":
        return _unknown_key(tuple(str(name) for name in loc))
    if kind == "missing" and isinstance(loc[-1], str):
        return f"{_dotted(loc)} is missing: set it in the file or as {_dotted(loc)}=VALUE on the command line"
    if kind == "missing":
        kind, loc = "too_short", loc[:-1]
    if kind == "literal_error":
        expected = re.findall(r"'([^']*)'", str(context["expected"]))
        meant = difflib.get_close_matches(str(mistake["input"]), expected, n=1)
        fault = f"is not one of {', '.join(expected)}{_did_you_mean(meant)}"
    else:
        fault = _FAULTS.get(kind, mistake["msg"]).format_map(context)
    return f"{_dotted(loc)}: {_show(mistake['input'])} {fault}"


_FAULTS = {
    "int_type": "is not a whole number",
    "float_type": "is not a number",
    "string_type": "is not text (put it in quotes)",
    "string_too_short": "is empty",
    "finite_number": "is not a finite number",
    "bool_type": "is not true or false",
    "tuple_type": "is not a list of two numbers",
    "too_short": "is not a list of two numbers",
    "too_long": "is not a list of two numbers",
    "model_type": "is not a section of keys and values",
    "greater_than": "is not above {gt}",
    "greater_than_equal": "is below the smallest allowed value, {ge}",
    "less_than": "is not below {lt}",
    "less_than_equal": "is above the largest allowed value, {le}",
}


def _unknown_key(names: tuple[str, ...]) -> str:
    *parents, name = names
    key = ".".join(names)
    if _field(key.split(".")) is not None:
        return f"unknown key {key} (in a file, write the sections as nested keys; dots are for the command line)"
    section = section_classes().get(".".join(parents)) if parents else Config
    siblings = list(section.model_fields) if section else []
    keys = [row.key for row in field_rows()]
    elsewhere = [other for other in keys if other.endswith(f".{name}")]
    meant = difflib.get_close_matches(name, siblings, n=1) or elsewhere or difflib.get_close_matches(key, keys, n=1)
    if not meant and siblings:
        return f"unknown key {key} (known here: {', '.join(siblings)})"
    return f"unknown key {key}{_did_you_mean(meant)}"


def _did_you_mean(names: Sequence[str]) -> str:
    return f" (did you mean {' or '.join(names)}?)" if names else ""


def _dotted(loc: Sequence[int | str]) -> str:
    return "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in loc).removeprefix(".")


def _show(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
