"""The arithmetic that a training step must do, from the sizes of the model and the lengths of the documents.

Matrix products alone, forward and backward: a weight costs 6 operations a token that meets it, a pair of a query and a
key that it sees 12 a channel and layer. Recomputed activations, padding and logits where nothing is predicted are no
work of the model. The bag of words of dupmae is counted as it is computed, with dense products in both directions.

Legend: T tokens, D documents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from train.config import Config, mask_ratio
from train.data.batch import Batch

Counted = Callable[[Config, int, np.ndarray, int | None], float]


def training_flops(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None = None) -> float:
    """Floating-point operations of a step over documents of these lengths, [CLS] and [SEP] included.

    `vocabulary` is the number of tokens; `step` counts the completed ones, as objective.mask_ratio_at does (None: as
    in validation). Where whole words or spans are chosen, so many tokens may be a few less.
    """
    return float(_FORMULAS[config.objective.name](config, vocabulary, lengths_D, step))


def batch_flops(config: Config, vocabulary: int) -> Callable[[Batch, int], int]:
    """What counts the operations of a micro-batch on the host; fillers are no work."""

    def count(batch: Batch, step: int) -> int:
        lengths_D = batch.lengths_D[batch.row_ids_D.numpy() >= 0]
        return round(training_flops(config, vocabulary, lengths_D, step)) if len(lengths_D) else 0

    return count


# ---------------------------------------------------------------------------------------------------------------------
# Objectives


def _mlm(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    targets = _chosen(lengths_D - 2, mask_ratio(config.objective, step)).sum()
    boundary = 0.0
    if config.objective.boundary_weight:  # two layers, of which the first sees three vectors
        width = config.model.encoder.hidden_size
        boundary = 6 * (4 * width**2 + width * vocabulary) * targets
    return _encoder(config, lengths_D) + _mlm_head(config, vocabulary, targets) + boundary


def _mae(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    dropped_D = _chosen(lengths_D - 2, config.objective.drop_ratio)
    kept_D = lengths_D - dropped_D
    return _encoder(config, kept_D) + _decoder(config, vocabulary, kept_D, lengths_D, dropped_D.sum())


def _latent_mae(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    dropped_D = _chosen(lengths_D - 2, config.objective.drop_ratio)
    targets = (lengths_D - 2 if config.objective.reconstruct == "all" else dropped_D).sum()
    decoder = _decoder(config, vocabulary, lengths_D - dropped_D, lengths_D, targets)
    return _encoder(config, lengths_D) + decoder


def _joint(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    kept_D = lengths_D - _chosen(lengths_D - 2, config.objective.drop_ratio)
    masked = _chosen(kept_D - 2, mask_ratio(config.objective, step)).sum()
    return _mae(config, vocabulary, lengths_D, step) + _mlm_head(config, vocabulary, masked)


def _retromae(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    sizes, tokens, targets = config.model.encoder, lengths_D.sum(), (lengths_D - 2).sum()
    width = sizes.hidden_size
    layer = _layer(width, width, 2 * sizes.intermediate_size, tokens, (lengths_D**2).sum())
    return _mlm(config, vocabulary, lengths_D, step) + layer + _mlm_head(config, vocabulary, targets)


def _dupmae(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    return _retromae(config, vocabulary, lengths_D, step) + _mlm_head(config, vocabulary, lengths_D.sum())


def _span_corruption(config: Config, vocabulary: int, lengths_D: np.ndarray, step: int | None) -> float:
    from train.objectives.span_corruption import most_spans, span_counts  # which imports torch's part of the project

    settings = config.objective
    noise_D, spans_D = span_counts(lengths_D - 2, mask_ratio(settings, step), settings.mean_span_length)
    seen_D, written_D = lengths_D - noise_D + spans_D, noise_D + spans_D + 1
    own, outer = config.model.resolved_decoder(), config.model.encoder.hidden_size
    width, tokens = own.hidden_size, written_D.sum()
    itself = _layer(width, width, 2 * own.intermediate_size, tokens, (written_D * (written_D + 1) / 2).sum())
    across = 6 * (2 * width**2 * tokens + 2 * outer * width * seen_D.sum()) + 12 * width * (written_D * seen_D).sum()
    outputs, targets = vocabulary + most_spans(config), (written_D * (spans_D > 0)).sum()
    edges = 6 * outer * (width * tokens + (width + outputs) * targets)
    return float(_encoder(config, seen_D) + own.num_hidden_layers * (itself + across) + edges)


_FORMULAS: dict[str, Counted] = {
    "mlm": _mlm,
    "mae": _mae,
    "latent-mae": _latent_mae,
    "joint": _joint,
    "retromae": _retromae,
    "dupmae": _dupmae,
    "span-corruption": _span_corruption,
}


# ---------------------------------------------------------------------------------------------------------------------
# Parts


def _encoder(config: Config, lengths_D: np.ndarray) -> float:
    sizes = config.model.encoder
    extra: dict[str, Any] = dict(sizes.extra)
    gated = sizes.model_type in ("modernbert", "eurobert")  # a third matrix in the feed-forward network
    inner = sizes.intermediate_size * (3 if gated else 2)
    heads, grouped = sizes.num_attention_heads, extra.get("num_key_value_heads") or sizes.num_attention_heads
    width = extra.get("head_dim", sizes.hidden_size // heads) * heads  # of all heads
    outer, tokens = sizes.hidden_size, lengths_D.sum()
    layers = sizes.num_hidden_layers * 6 * (2 * outer * width * (1 + grouped / heads) + outer * inner) * tokens
    windows = Counter(_windows(config)).items()
    return float(layers + sum(12 * width * times * _pairs(lengths_D, window).sum() for window, times in windows))


def _windows(config: Config) -> list[int | None]:
    """Of each layer of the encoder: None is global attention."""
    sizes, extra = config.model.encoder, dict[str, Any](config.model.encoder.extra)
    if sizes.model_type != "modernbert":
        return [None] * sizes.num_hidden_layers
    every = int(extra.get("global_attn_every_n_layers", 3))
    usual = ["sliding" if number % every else "full" for number in range(sizes.num_hidden_layers)]
    window = int(extra.get("local_attention", 128)) // 2 + 1
    return [window if kind.startswith("sliding") else None for kind in extra.get("layer_types") or usual]


def _pairs(lengths_D: np.ndarray, window: int | None) -> np.ndarray:
    """Pairs of tokens of each document that are less than `window` apart; each token sees itself."""
    if window is None:
        return lengths_D**2
    return np.where(lengths_D <= window, lengths_D**2, lengths_D * (2 * window - 1) - window * (window - 1))


def _layer(width: int, outer: int, inner: int, tokens: int, pairs: float) -> float:
    """Queries, keys, values and output; feed-forward matrices `inner` wide together; scores and mixtures."""
    return 6 * (4 * width * outer + outer * inner) * tokens + 12 * width * pairs


def _mlm_head(config: Config, vocabulary: int, targets: int) -> float:
    width = config.model.encoder.hidden_size
    own = 0 if config.model.encoder.model_type == "eurobert" else width**2  # its head is the last product alone
    return 6 * (own + width * vocabulary) * targets


def _decoder(config: Config, vocabulary: int, kept_D: np.ndarray, lengths_D: np.ndarray, targets: int) -> float:
    own, outer = config.model.resolved_decoder(), config.model.encoder.hidden_size
    width = own.hidden_size
    layer = _layer(width, width, 2 * own.intermediate_size, lengths_D.sum(), (lengths_D**2).sum())
    edges = width * outer * kept_D.sum() + (width + vocabulary) * outer * targets
    return float(own.num_hidden_layers * layer + 6 * edges)


def _chosen(ordinary_D: np.ndarray, ratio: float) -> np.ndarray:
    """Tokens of each document that are masked or dropped."""
    chosen_D: np.ndarray = np.minimum(np.maximum(1, np.round(ordinary_D * ratio)), ordinary_D).astype(np.int64)
    return chosen_D
