"""Owns the run configuration: its typed fields, the combinations that cannot work, and what follows from them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator
from pydantic.fields import FieldInfo

from data_pipeline.errors import UserError
from train.model.families import FAMILIES, check_extra

Beta = Annotated[float, Field(ge=0, lt=1)]

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
    max_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Minutes after the start of a process at which it stops as on a signal: with a checkpoint and exit "
        "code 75; the same command goes on (null: never). Below a scheduler's limit, this leaves the time to save.",
    )


class Source(Section):
    """One of several data sets."""

    name: str = Field(pattern=r"^[A-Za-z0-9-]+$")
    path: str = Field(min_length=1)
    weight: float = Field(gt=0)


class WeightsAt(Section):
    """Other weights from an optimizer step on."""

    step: int = Field(gt=0)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(strict=False)


class LengthAt(Section):
    """Another sequence length from an optimizer step on."""

    step: int = Field(gt=0)
    length: int = Field(ge=8, le=8192)


class Data(Section):
    """The data set, or a mixture of several. Vocabulary, special tokens and tokenizer come from its manifest and are no
    fields. Where the data are a mixture or the sequence length changes, epochs follow one another without filler rows,
    and a block may be read by several ranks."""

    path: str | None = Field(
        default=None,
        min_length=1,
        description="Data set directory with its manifest.json, as written by `python -m data_pipeline build`, or its "
        "URL in a store: s3:// (extra s3), gs:// (extra gs), https:// (extra https), any that fsspec knows. Either "
        "`path` or `sources` must be given.",
    )
    sources: tuple[Source, ...] = Field(
        default=(),
        strict=False,
        description="Several data sets built with the same tokenizer, as a list of {name, path, weight}. Of all rows "
        "read, each has its weight's share, exact to a row in every thousand; each has epochs of its own, which are "
        "metrics (epoch_NAME).",
    )
    weights_at: tuple[WeightsAt, ...] = Field(
        default=(),
        strict=False,
        description="Other weights of the sources from an optimizer step on, as a list of {step, weights}. The epochs "
        "of the sources go on.",
    )
    sequence_length: int = Field(
        default=512,
        ge=8,
        le=8192,
        description="Most tokens in a packed row, [CLS] and [SEP] of every document piece included.",
    )
    piece_length: int | None = Field(
        default=None,
        gt=0,
        description="Ordinary tokens after which a longer document is cut (null: what fills a row, sequence_length "
        "- 2). Shorter pieces teach nothing about long distances, but a row then holds several documents.",
    )
    piece_overlap: int = Field(
        default=0,
        ge=0,
        description="Ordinary tokens at the end of a piece that the next piece of the same document repeats as its "
        "beginning.",
    )
    sequence_length_at: tuple[LengthAt, ...] = Field(
        default=(),
        strict=False,
        description="Other sequence lengths from an optimizer step on, as a list of {step, length}. There each data "
        "set begins a new epoch of its new rows; what was left of the old epoch is not read. A step keeps its rows, "
        "so its tokens grow with the length, unless batch.same_tokens_per_step says otherwise. Validation stays at "
        "sequence_length, so that its curve has no jump.",
    )
    when_exhausted: Literal["repeat", "stop"] = Field(
        default="repeat",
        description="After the last row of the data: repeat begins the next epoch in another order; stop ends the run "
        "there, with validation and a checkpoint, even before run.steps. Of a mixture, the end is the first batch that "
        "would need a row of any source for the second time.",
    )
    max_damaged_share: float = Field(
        default=0.001,
        ge=0,
        le=1,
        description="Rows of blocks that are damaged or missing are left out, named in the log and counted as "
        "damaged_rows. The run ends with exit code 3 once they are more than this share of the rows seen so far, or of "
        "10,000 rows while fewer were seen: by default at the eleventh damaged row at the earliest (0: at the first).",
    )
    continue_grown: bool = Field(
        default=False,
        description="Go on where the data set has more blocks than the checkpoint's, all of them behind the old ones. "
        "The epoch begun is finished over the old blocks, so that each row is read once; the next one takes in all. "
        "Not for mixtures and not with sequence_length_at.",
    )
    cache: str = Field(
        default="~/.cache/bertmae",
        min_length=1,
        description="Folder for packing plans where the data set's own folder `plans` cannot be written, and for what "
        "was fetched of remote data sets: on a disk of the node, then. A plan is made by one process, mapped by all, "
        "and may be deleted at any time.",
    )
    cache_gigabytes: float = Field(
        default=50.0,
        gt=0,
        description="Most gigabytes (10^9 bytes) of remote blocks that a node keeps in `cache`; the least recently "
        "used go first. A run reads several times over the blocks of one window, whose size it says at the start.",
    )
    store_patience_seconds: float = Field(
        default=600.0,
        gt=0,
        le=1500,
        description="A store that gives no answer is asked again for so long; then the run ends with a checkpoint and "
        "exit code 2, and the same command goes on.",
    )


class Encoder(Section):
    """The encoder, in the names of the transformers library; where an architecture has another name for a field, it is
    translated. The defaults below are those of bert; fields that are left out take the architecture's own where it has
    others (modernbert: 22 layers, intermediate_size 1152, 8192 positions, no dropout, layer_norm_eps 1e-5). Attention
    dropout is no field: the padding-free attention kernel has none, so it is always 0."""

    model_type: Literal["bert", "roberta", "xlm-roberta", "modernbert", "eurobert"] = Field(
        default="bert", description="Architecture in the transformers library."
    )
    hidden_size: int = Field(default=768, gt=0, description="Width of the hidden states.")
    num_hidden_layers: int = Field(default=12, gt=0, description="Number of transformer layers.")
    num_attention_heads: int = Field(default=12, gt=0, description="Attention heads; they divide hidden_size.")
    intermediate_size: int = Field(default=3072, gt=0, description="Width inside the feed-forward blocks.")
    max_position_embeddings: int = Field(
        default=512,
        gt=0,
        description="The longest document piece the model can read, in tokens; for bert and roberta the number of "
        "learned positions. The rows that roberta puts before its first position are not counted: 512, not 514.",
    )
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"] = Field(
        default="gelu", description="Activation of the feed-forward blocks and of the MLM head."
    )
    hidden_dropout_prob: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Dropout after the embeddings and after every sublayer (0: none). modernbert: after the embeddings "
        "and inside the feed-forward blocks. eurobert has none.",
    )
    layer_norm_eps: float = Field(default=1e-12, gt=0, description="Epsilon inside the layer normalizations.")
    initializer_range: float = Field(
        default=0.02, gt=0, description="Standard deviation of the normal distribution that weights start from."
    )
    extra: dict[str, JsonValue] = Field(
        default={},
        description="Further settings of the architecture, in the names of its configuration class in transformers: "
        "{local_attention: 64} for modernbert, {vocab_size: 30528} for an embedding with more rows than tokens.",
    )

    @model_validator(mode="before")
    @classmethod
    def _take_the_architectures_defaults(cls, fields: object) -> object:
        family = FAMILIES.get(str(fields.get("model_type"))) if isinstance(fields, dict) else None
        return fields if family is None else {**family.defaults, **fields}  # type: ignore[dict-item]

    @model_validator(mode="after")
    def _refuse_unknown_settings(self) -> Self:
        if self.extra:
            check_extra(self.model_type, self.extra)
        if self.hidden_dropout_prob and not FAMILIES[self.model_type].names["hidden_dropout_prob"]:
            raise ValueError(
                f"model.encoder.hidden_dropout_prob {self.hidden_dropout_prob}: {self.model_type} has no dropout, set 0"
            )
        return self


class Decoder(Section):
    """The decoder of the objectives mae, latent-mae, joint and span-corruption; mlm has none, and that of retromae and
    dupmae has the sizes of the encoder. Sizes that are not set here are as in the
    encoder; the activation is always GELU, and positions are rotations of queries and keys (RoFormer)."""

    num_hidden_layers: int = Field(default=2, gt=0, description="Number of transformer layers.")
    hidden_size: int | None = Field(
        default=None, gt=0, description="Width of the hidden states (null: the encoder's hidden_size)."
    )
    num_attention_heads: int | None = Field(
        default=None,
        gt=0,
        description="Attention heads; they divide the decoder's hidden_size into even widths (null: the encoder's "
        "num_attention_heads).",
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

    pretrained: str | None = Field(
        default=None,
        min_length=1,
        description="Folder of a transformers model whose weights the run starts from. Sizes and further settings of "
        "the encoder come from its config.json; those that are set here as well must be the same, dropout, "
        "initializer_range and the bases of rotations apart. Its tokenizer must be that of the data set. The folder is "
        "read when the run starts, not when it goes on.",
    )
    gradient_checkpointing: bool = Field(
        default=True,
        description="Recompute the activations of a layer in the backward pass: less memory for about a third more "
        "arithmetic.",
    )
    gradient_checkpointing_every: int = Field(
        default=1,
        gt=0,
        description="With gradient_checkpointing: every how many layers of encoder and decoder one is recomputed, from "
        "the first on (1: all of them).",
    )
    compile: bool = Field(
        default=False,
        description="Compile the layers of encoder and decoder with torch.compile: minutes at the start, then fewer "
        "and faster kernels. On a CPU it needs a C++ compiler.",
    )
    encoder: Encoder = Field(default=Encoder(), description="The encoder.")
    decoder: Decoder = Field(default=Decoder(), description="The decoder.")

    @model_validator(mode="before")
    @classmethod
    def _take_the_sizes_of_the_pretrained_folder(cls, fields: object) -> object:
        if not isinstance(fields, dict):
            return fields
        folder, encoder = fields.get("pretrained"), fields.get("encoder", {})
        if not folder or not isinstance(folder, str) or not isinstance(encoder, dict):
            return fields
        if set(Encoder.model_fields) <= set(encoder):  # written by a run, whose folder may be gone
            return fields
        from train.model.pretrained import filled_encoder  # transformers takes seconds to import

        return fields | {"encoder": filled_encoder(Path(folder), encoder)}

    def resolved_decoder(self) -> DecoderSizes:
        """The decoder's sizes, with the encoder's in the place of every null."""
        own, encoder = self.decoder, self.encoder
        return DecoderSizes(
            num_hidden_layers=own.num_hidden_layers,
            hidden_size=own.hidden_size or encoder.hidden_size,
            num_attention_heads=own.num_attention_heads or encoder.num_attention_heads,
            intermediate_size=own.intermediate_size or encoder.intermediate_size,
        )


class RatioAt(Section):
    """Another mask ratio from an optimizer step on."""

    step: int = Field(gt=0)
    ratio: float = Field(gt=0, lt=1)


Unit = Literal["token", "word", "span"]


class Objective(Section):
    """What the model learns from. mlm: masked tokens are predicted at the encoder's output. mae: the encoder never sees
    the dropped tokens and the decoder predicts them. latent-mae: the encoder sees everything, some of its states are
    replaced by one learned vector, and the decoder predicts the tokens there. joint: mlm and mae at once, MLM on the
    tokens that the encoder keeps. retromae: mlm, and a decoder of one layer that predicts every token from the state of
    [CLS] and few visible tokens. dupmae: retromae, and the document's set of tokens from the encoder's other states.
    span-corruption: the encoder sees a sentinel for every noise span, the decoder writes the spans (T5)."""

    name: Literal["mlm", "mae", "latent-mae", "joint", "retromae", "dupmae", "span-corruption"] = Field(
        default="mlm", description="Pretraining objective."
    )
    mask_ratio: float = Field(
        default=0.15,
        gt=0,
        lt=1,
        description="mlm, joint, retromae and dupmae: share of a document piece's ordinary tokens (joint: of those the "
        "encoder keeps) that become MLM targets. span-corruption: share of the tokens that are noise.",
    )
    mask_ratio_at: tuple[RatioAt, ...] = Field(
        default=(),
        strict=False,
        description="Other mask ratios from an optimizer step on, as a list of {step, ratio}. Validation stays at "
        "mask_ratio, so that its curve has no jump.",
    )
    mask_ratio_between: Literal["hold", "linear"] = Field(
        default="hold", description="Between two steps of mask_ratio_at: the earlier ratio, or a straight line."
    )
    mask_unit: Unit = Field(
        default="token",
        description="What is masked whole. token; word (a WordPiece with its ## tails, a Chinese word); span (one to "
        "max_span_words words, SpanBERT). A unit that would exceed the ratio's count is left out, so words and spans "
        "may give a few targets less.",
    )
    span_probability: float = Field(
        default=0.2,
        gt=0,
        lt=1,
        description="Unit span: lengths in words are geometric with this parameter, cut at max_span_words: 3.8 words "
        "on average at 0.2 and 10.",
    )
    max_span_words: int = Field(default=10, ge=1, le=64, description="Unit span: longest span in words.")
    mask_token_share: float = Field(
        default=0.8, ge=0, le=1, description="Share of the MLM targets (of the spans: unit span) replaced by [MASK]."
    )
    random_token_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of the MLM targets (of the spans: unit span) replaced by a random ordinary token; what the "
        "two shares leave over stays unchanged.",
    )
    boundary_weight: float = Field(
        default=0.0,
        ge=0,
        description="mlm: weight of the span-boundary loss (SpanBERT), which predicts a target from the two states "
        "beside its run of targets and its place in the run (0: none).",
    )
    drop_ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="mae and joint: share of a document piece's ordinary tokens that the encoder never sees and the "
        "decoder predicts. latent-mae: share of the states that are replaced.",
    )
    drop_unit: Unit = Field(default="token", description="mae, latent-mae and joint: what is dropped whole.")
    reconstruct: Literal["masked", "all"] = Field(
        default="masked", description="latent-mae: the decoder's loss is on the masked places or on all of them."
    )
    decoder_mask_ratio: float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="retromae and dupmae: share of the words that are hidden from the decoder, drawn anew for every "
        "token it predicts.",
    )
    decoder_query: Literal["positions", "embeddings"] = Field(
        default="positions",
        description="retromae and dupmae: what the decoder asks with: the state of [CLS] plus the position's row, or "
        "the encoder's embedding layer applied to the state of [CLS] (as FlagEmbedding has it).",
    )
    mean_span_length: float = Field(
        default=3.0, ge=1, description="span-corruption: mean length of a noise span in tokens."
    )
    mlm_weight: float = Field(
        default=1.0, ge=0, description="joint, retromae and dupmae: weight of the MLM loss in the sum."
    )
    reconstruction_weight: float = Field(
        default=1.0, ge=0, description="joint, retromae and dupmae: weight of the decoder's loss in the sum."
    )
    bag_of_words_weight: float = Field(
        default=0.1, ge=0, description="dupmae: weight of the loss on the document's set of tokens in the sum."
    )

    @property
    def needs_word_starts(self) -> bool:
        """Whether anything of the objective is chosen by words."""
        return self.name in ("retromae", "dupmae") or self.mask_unit != "token" or self.drop_unit != "token"


class RowsAt(Section):
    """Another global batch size from an optimizer step on."""

    step: int = Field(gt=0)
    rows: int = Field(gt=0)


class Batch(Section):
    """Batch sizes in packed rows. The accumulation steps follow: global / (micro x devices)."""

    global_batch_size: int = Field(default=256, gt=0, description="Rows per optimizer step, over all devices.")
    global_batch_size_at: tuple[RowsAt, ...] = Field(
        default=(),
        strict=False,
        description="Other global batch sizes from an optimizer step on, as a list of {step, rows}: small batches at "
        "the beginning cost less for the same progress. The accumulation steps follow; the order of the rows, the "
        "learning rate and everything else that goes by the step stay as they are.",
    )
    micro_batch_size: int = Field(
        default=8, gt=0, description="Rows per device in one forward pass; it decides memory, not the result."
    )
    same_tokens_per_step: bool = Field(
        default=False,
        description="With data.sequence_length_at: divide both batch sizes by length / data.sequence_length, so that a "
        "step keeps its tokens and a forward pass its memory. All must divide evenly.",
    )


class ParameterGroup(Section):
    """Parameters with a learning rate or a weight decay of their own."""

    parameters: str = Field(min_length=1)
    learning_rate_ratio: float = Field(default=1.0, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)


class Optimizer(Section):
    """The optimizer, with decoupled weight decay. All three keep the same two moments of every element; lamb and
    stable-adamw also scale the step of every parameter by one number, the same at every ZeRO stage."""

    name: Literal["adamw", "lamb", "stable-adamw"] = Field(
        default="adamw",
        description="adamw. lamb, for very large batches: the step of whatever decays has the norm of the weights it "
        "changes, times the learning rate, which is therefore larger (BERT: 4e-3 to 6e-3). stable-adamw: the learning "
        "rate of a parameter is lower in steps whose gradients are large for its second moment.",
    )
    learning_rate: float = Field(default=1e-4, gt=0, description="Peak learning rate, reached after the warmup.")
    betas: tuple[Beta, Beta] = Field(
        default=(0.9, 0.98), strict=False, description="Decay rates of the two moment averages, a list of two."
    )
    eps: float = Field(default=1e-6, gt=0, description="Added to the denominator of the update.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled weight decay of the matrices; biases and layer norms have none."
    )
    groups: tuple[ParameterGroup, ...] = Field(
        default=(),
        strict=False,
        description="Parameters that differ, as a list of {parameters, learning_rate_ratio, weight_decay}: a pattern "
        "of names in which * stands for anything, a factor of the learning rate (1 if left out), and a decay of all "
        "that match, vectors included (left out: as without the group). The first pattern that matches a name decides.",
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
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="bf16",
        description="Number format of forward and backward passes; master weights, gradient sums, softmax and losses "
        "are always fp32. bf16 needs no loss scale; fp16, for GPUs without bf16, has a dynamic one, and a step whose "
        "gradients overflow is left out.",
    )
    autocast: bool = Field(
        default=False,
        description="With precision bf16: keep the weights in fp32 and let torch.autocast choose bf16 or fp32 for each "
        "operation; the only bf16 of ZeRO stage 0. false casts the weights to bf16 beside their fp32 masters: 2 bytes "
        "less for each parameter and for each gradient, and no cast at every use. Both learn as fp32 does.",
    )

    @model_validator(mode="after")
    def _refuse_autocast_without_bf16(self) -> Self:
        if self.autocast and self.precision != "bf16":
            raise ValueError(
                f"engine.autocast works with engine.precision bf16 only, not with {self.precision}: set it to false"
            )
        return self


class Checkpoint(Section):
    """When the state of the run is saved."""

    interval_steps: int = Field(default=1000, gt=0, description="Optimizer steps between two checkpoints.")
    interval_minutes: float | None = Field(
        default=None,
        gt=0,
        description="Most minutes between two checkpoints, by the clock of rank 0; a checkpoint is due when either "
        "interval is over (null: interval_steps alone decides).",
    )
    keep_last: int = Field(default=3, gt=0, description="Number of newest checkpoints kept on disk.")
    keep_every: int | None = Field(
        default=None,
        gt=0,
        description="A checkpoint is written at every multiple of so many steps and kept for good (null: none).",
    )
    export_every: int | None = Field(
        default=None,
        gt=0,
        description="At every multiple of so many steps a checkpoint is written, and RUN/exports/step-N with what "
        "`python -m train export` makes of it (null: none). Exports are kept for good.",
    )
    keep_best: bool = Field(
        default=False,
        description="Write a checkpoint at each validation with the lowest loss so far, and keep the one of the lowest "
        "of all; the file `best` names it.",
    )


class Validation(Section):
    """When the model is measured on the validation split."""

    interval_steps: int = Field(default=1000, gt=0, description="Optimizer steps between two validations.")
    max_rows: int = Field(default=2048, gt=0, description="Most packed rows of the split read in one validation.")
    samples: int = Field(
        default=4,
        ge=0,
        description="Documents of the split, always the same, whose predictions each validation writes to "
        "samples.jsonl and to the tab Text of TensorBoard; 0: none.",
    )


class ProbeSet(Section):
    """A data set that the frozen encoder is measured on."""

    name: str = Field(pattern=r"^[A-Za-z0-9-]+$")
    path: str = Field(min_length=1)


class Probes(Section):
    """What the frozen encoder is good for during the run, by the last state of [CLS] and by the mean of all last
    states: metrics probe_NAME_cls_... and probe_NAME_mean_.... Off while no data set is named. Nothing of it changes
    the training; `python -m train probe MODEL` measures the same on a finished model (extra finetune)."""

    interval_steps: int = Field(
        default=5000, gt=0, description="Optimizer steps between two measurements; the last step is always measured."
    )
    classification: tuple[ProbeSet, ...] = Field(
        default=(),
        strict=False,
        description="Accuracy of logistic regression, as a list of {name, path}: a folder with train.jsonl and "
        "validation.jsonl, dev.jsonl or test.jsonl (the first that is there is measured), or one file, of which a "
        "fifth is measured. Rows are {text, label}.",
    )
    similarity: tuple[ProbeSet, ...] = Field(
        default=(),
        strict=False,
        description="Spearman's correlation of cosines and scores, as a list of {name, path}: files of {a, b, score}.",
    )
    retrieval: tuple[ProbeSet, ...] = Field(
        default=(),
        strict=False,
        description="nDCG at 10 of documents ranked by cosine, as a list of {name, path}: folders laid out as BEIR's, "
        "with corpus.jsonl, queries.jsonl and qrels/validation.tsv, dev.tsv, test.tsv or train.tsv.",
    )
    max_texts: int = Field(
        default=2000,
        gt=1,
        description="Most rows of each file that are used, chosen by a hash; of a corpus all documents that are "
        "relevant to the queries taken are among them.",
    )
    max_length: int = Field(
        default=128, ge=8, description="Tokens after which a text is cut, where the encoder has so many positions."
    )

    @property
    def are_there(self) -> bool:
        """Whether any data set is named."""
        return bool(self.classification or self.similarity or self.retrieval)


class Logging(Section):
    """When metrics are written."""

    interval_steps: int = Field(default=10, gt=0, description="Optimizer steps between two lines of metrics.")
    writers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = Field(
        default=("tensorboard",),
        strict=False,
        description="What takes the records beside metrics.jsonl, as a list. wandb and mlflow are extras; they get "
        "their servers and modes from their own variables (WANDB_MODE, MLFLOW_TRACKING_URI).",
    )


class Profile(Section):
    """Where the time of a few steps goes on rank 0, by torch's profiler: RUN/profile receives a trace and a table of
    the most expensive operations. The run's result stays the same, bit for bit."""

    start_step: int | None = Field(
        default=None,
        gt=0,
        description="First step in the trace, as metrics.jsonl counts them (null: none). Leave out the first steps of "
        "a process, which are slower. A start of the run after this step writes no trace.",
    )
    steps: int = Field(default=3, gt=0, description="Steps in the trace.")
    memory: bool = Field(
        default=False,
        description="Also write what a GPU's memory held during these steps, and which lines of code asked for it. A "
        "processor has no such record.",
    )


class Incidents(Section):
    """Steps at which something went wrong. Each is a line of RUN/incidents.jsonl with the rows of its global batch, as
    SOURCE/EPOCH/ROW; `python -m train data-report RUN/config.yaml --incident STEP` shows their text."""

    max_skipped_in_a_row: int = Field(
        default=20,
        ge=0,
        description="Most updates in a row that are left out because gradients are not finite, the search for a loss "
        "scale of fp16 included; one more ends the run with exit code 5.",
    )
    spike_deviations: float | None = Field(
        default=6.0,
        ge=3,
        description="The total loss of a step is a spike where it is above mean + n x deviation of the losses before "
        "it, with this n (null: none is). deviation = max(sqrt(variance), mean / 1000). After each step, with "
        "a = 2 / (spike_window + 1) and d = loss - mean, at most n / 2 x deviation: mean grows by a d, variance "
        "becomes (1 - a)(variance + a d^2).",
    )
    spike_window: int = Field(
        default=100, ge=10, description="Steps over which mean and variance are taken, as a in the formula says."
    )
    spike_warmup_steps: int = Field(
        default=200,
        ge=0,
        description="None of the first steps of a run is a spike, and none of so many after a change by "
        "data.weights_at, data.sequence_length_at, batch.global_batch_size_at or objective.mask_ratio_at: mean and "
        "variance begin anew there.",
    )
    rewind: bool = Field(
        default=False,
        description="At a spike go back to the newest checkpoint with a good step between it and the spike, and leave "
        "out the rows of the spiking steps and of the step before them. RUN/skips.json has what is left out; every "
        "later start heeds it.",
    )
    max_rewinds: int = Field(
        default=3, gt=0, description="Times that a run goes back so; later spikes are written down, and it goes on."
    )


class Watchdog(Section):
    """When a run that hangs is ended: with exit code 1, the stacks of all threads in RUN/log-rank*.txt and one line
    that names the ranks that are behind. torchrun --max-restarts or a scheduler then starts it again."""

    minutes: float | None = Field(
        default=10.0,
        gt=0,
        le=90,
        description="Minutes without any progress after which a run hangs (null: it is never ended so). For data in a "
        "store, data.store_patience_seconds come on top. A process that was stopped for longer, as by Ctrl-Z, ends too "
        "when it wakes up.",
    )
    start_minutes: float | None = Field(
        default=60.0,
        gt=0,
        le=90,
        description="The same before the first step of a process, where plans are made and models compiled (null: "
        "a start is never ended so).",
    )


class Config(Section):
    """A pretraining run."""

    run: Run = Field(default=Run(), description="The run as a whole.")
    data: Data = Field(description="The data set.")
    model: Model = Field(default=Model(), description="The network.")
    objective: Objective = Field(default=Objective(), description="What the model learns from.")
    batch: Batch = Field(default=Batch(), description="Batch sizes.")
    optimizer: Optimizer = Field(default=Optimizer(), description="The optimizer.")
    schedule: Schedule = Field(default=Schedule(), description="The learning rate over the run.")
    engine: Engine = Field(default=Engine(), description="DeepSpeed and the arithmetic.")
    checkpoint: Checkpoint = Field(default=Checkpoint(), description="When the state of the run is saved.")
    validation: Validation = Field(default=Validation(), description="When the model is measured.")
    probes: Probes = Field(default=Probes(), description="What the frozen encoder is good for.")
    logging: Logging = Field(default=Logging(), description="When metrics are written.")
    profile: Profile = Field(default=Profile(), description="Where the time of a few steps goes.")
    incidents: Incidents = Field(default=Incidents(), description="Steps at which something went wrong.")
    watchdog: Watchdog = Field(default=Watchdog(), description="When a run that hangs is ended.")

    @model_validator(mode="after")
    def _refuse_impossible_combinations(self) -> Self:
        _check_model(self)
        _check_decoder_heads(self)
        _check_pieces(self.data)
        _check_sources(self.data)
        _check_lengths(self)
        _check_objective(self.objective)
        _check_batch(self.batch)
        _check_optimizer(self.optimizer)
        _check_schedule(self)
        _check_probes(self.probes)
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


def _check_decoder_heads(config: Config) -> None:
    decoder, objective = config.model.resolved_decoder(), config.objective.name
    width, heads = decoder.hidden_size, decoder.num_attention_heads
    # The decoder turns channels of a head in pairs; mlm builds none.
    if objective in ("mae", "latent-mae", "joint", "span-corruption") and width // heads % 2:
        raise ValueError(
            f"model.decoder.hidden_size {width} over model.decoder.num_attention_heads {heads} makes heads of "
            f"{width // heads} channels, and objective.name {objective} needs an even number: change one of them "
            f"(the nearest width is {_nearest_multiples(width, 2 * heads)})"
        )


def _check_pieces(data: Data) -> None:
    room = data.sequence_length - 2
    longest = data.piece_length or room
    if longest > room:
        raise ValueError(
            f"data.piece_length {longest} does not fit into data.sequence_length {data.sequence_length} with [CLS] and "
            f"[SEP]: use at most {room}"
        )
    if data.piece_overlap >= longest:
        raise ValueError(
            f"data.piece_overlap {data.piece_overlap} leaves nothing new in a piece of {longest} tokens: lower it"
        )


def _check_sources(data: Data) -> None:
    if not data.path and not data.sources:
        raise ValueError("data.path is missing: set it in the file or as data.path=VALUE on the command line")
    if data.path and data.sources:
        raise ValueError(f"data.path {data.path} and data.sources are both given: leave one of them out")
    names = [source.name for source in data.sources]
    if len(set(names)) < len(names):
        raise ValueError(f"data.sources: two sources have the same name among {', '.join(names)}: rename one")
    for change in data.weights_at:
        if len(change.weights) != len(names):
            raise ValueError(
                f"data.weights_at: {len(change.weights)} weights at step {change.step} for {len(names)} data.sources: "
                "give one for each"
            )
    _check_rising("data.weights_at", [change.step for change in data.weights_at])
    _check_rising("data.sequence_length_at", [change.step for change in data.sequence_length_at])
    if data.continue_grown and (data.sources or data.sequence_length_at):
        raise ValueError("data.continue_grown works neither with data.sources nor with data.sequence_length_at")


def _check_rising(name: str, steps: list[int]) -> None:
    if sorted(set(steps)) != steps:
        raise ValueError(f"{name}: the steps {', '.join(map(str, steps))} do not rise: put them in order")


def _check_lengths(config: Config) -> None:
    first, batch = config.data.sequence_length, config.batch
    for change in config.data.sequence_length_at:
        if change.length > config.model.encoder.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length_at: length {change.length} is above model.encoder.max_position_embeddings "
                f"{config.model.encoder.max_position_embeddings}: shorten the rows or raise the positions"
            )
        if batch.same_tokens_per_step and (change.length % first or batch.micro_batch_size % (change.length // first)):
            raise ValueError(
                f"batch.same_tokens_per_step: length {change.length} at step {change.step} must be a multiple of "
                f"data.sequence_length {first}, and batch.micro_batch_size {batch.micro_batch_size} divisible by the "
                "ratio: change one of them or set it to false"
            )


def _check_objective(objective: Objective) -> None:
    masked, random = objective.mask_token_share, objective.random_token_share
    # Shares such as 0.57 and 0.43 are 1 to a reader; their binary sum may be a rounding error above it.
    if masked + random > 1 + 1e-9:
        raise ValueError(
            f"objective.mask_token_share {masked} and objective.random_token_share {random} are above 1 together: "
            "lower one of them"
        )
    _check_rising("objective.mask_ratio_at", [change.step for change in objective.mask_ratio_at])
    if objective.boundary_weight and objective.name != "mlm":
        raise ValueError(
            f"objective.boundary_weight {objective.boundary_weight} works with objective.name mlm only, not with "
            f"{objective.name}: set it to 0"
        )
    weighted = {"joint": 2, "retromae": 2, "dupmae": 3}.get(objective.name, 0)
    names = ("mlm_weight", "reconstruction_weight", "bag_of_words_weight")[:weighted]
    if weighted and not any(getattr(objective, name) for name in names):
        zeros = " and ".join(f"objective.{name} 0" for name in names)
        raise ValueError(f"{zeros} leave nothing to learn: raise one of them")


def _check_batch(batch: Batch) -> None:
    _check_rising("batch.global_batch_size_at", [change.step for change in batch.global_batch_size_at])
    micro = batch.micro_batch_size
    for name, rows in _global_batch_sizes(batch):
        if micro > rows:
            raise ValueError(f"batch.micro_batch_size {micro} is above {name}: lower the first or raise the second")
        if rows % micro:
            raise ValueError(
                f"{name} is not divisible by batch.micro_batch_size {micro}: "
                f"use a global batch of {_nearest_multiples(rows, micro)}"
            )


def _global_batch_sizes(batch: Batch) -> Iterator[tuple[str, int]]:
    """Every global batch size of the run, with the words that name it."""
    yield f"batch.global_batch_size {batch.global_batch_size}", batch.global_batch_size
    for change in batch.global_batch_size_at:
        yield f"batch.global_batch_size_at {change.rows} (at step {change.step})", change.rows


def _check_optimizer(optimizer: Optimizer) -> None:
    if optimizer.name == "lamb" and not any([optimizer.weight_decay, *(g.weight_decay for g in optimizer.groups)]):
        raise ValueError(
            "optimizer.name lamb scales the steps of what decays, and with optimizer.weight_decay 0 nothing does: "
            "raise it or use optimizer.name adamw"
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


def _check_probes(probes: Probes) -> None:
    names = [entry.name for entry in (*probes.classification, *probes.similarity, *probes.retrieval)]
    if len(set(names)) < len(names):
        raise ValueError(f"probes: two data sets have the same name among {', '.join(names)}: rename one")


def _nearest_multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return f"{below} or {below + divisor}" if below else f"{divisor}"


# ---------------------------------------------------------------------------------------------------------------------
# Values that follow from the fields


def decay_steps(config: Config) -> int:
    """Length in optimizer steps of the closing decay of a warmup_stable_decay schedule, at least 1."""
    return config.schedule.decay_steps or max(1, config.run.steps // 10)


def mask_ratio(objective: Objective, step: int | None) -> float:
    """Share of the tokens that masked language modelling hides in the step that follows `step` completed ones (None:
    in validation)."""
    points = [(0, objective.mask_ratio), *((change.step, change.ratio) for change in objective.mask_ratio_at)]
    if step is None or step >= points[-1][0]:
        return points[-1 if step is not None else 0][1]
    after = next(i for i, (at, _) in enumerate(points) if at > step)
    (begin, first), (end, last) = points[after - 1], points[after]
    if objective.mask_ratio_between == "hold":
        return first
    return first + (last - first) * (step - begin) / (end - begin)


def global_batch_size(batch: Batch, step: int) -> int:
    """Rows of the step that follows `step` completed ones, over all devices."""
    return [batch.global_batch_size, *(at.rows for at in batch.global_batch_size_at if at.step <= step)][-1]


def gradient_accumulation_steps(config: Config, world_size: int, step: int = 0) -> int:
    """Forward passes per device in the step that follows `step` completed ones, on `world_size` devices.

    Raises UserError when a global batch of the run does not divide evenly, naming the nearest sizes that do.
    """
    micro = config.batch.micro_batch_size
    rows_per_pass = micro * world_size
    for name, rows in _global_batch_sizes(config.batch):
        if rows % rows_per_pass:
            raise UserError(
                f"{name} is not divisible by batch.micro_batch_size {micro} x {world_size} devices "
                f"= {rows_per_pass} rows: use a global batch of {_nearest_multiples(rows, rows_per_pass)}"
            )
    return global_batch_size(config.batch, step) // rows_per_pass


# ---------------------------------------------------------------------------------------------------------------------
# The fields as a list


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


def find_field(names: Sequence[str]) -> FieldInfo | None:
    """The section or field at the end of a path of names, or None where there is none."""
    cls: type[Section] | None = Config
    info = None
    for name in names:
        info = cls.model_fields.get(name) if cls else None
        cls = _section_class(info) if info else None
    return info


def _walk_sections(cls: type[Section], prefix: str) -> Iterator[tuple[str, type[Section]]]:
    for name, info in cls.model_fields.items():
        inner = _section_class(info)
        if inner is not None:
            yield prefix + name, inner
            yield from _walk_sections(inner, f"{prefix}{name}.")


def _section_class(info: FieldInfo) -> type[Section] | None:
    cls = info.annotation
    return cls if isinstance(cls, type) and issubclass(cls, Section) else None
