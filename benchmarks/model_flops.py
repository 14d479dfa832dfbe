"""The arithmetic that a training step must do, from the sizes of the model and the lengths of the documents.

Matrix products alone, forward and backward: a weight costs 6 operations a token that meets it, a pair of a query and a
key that it sees 12 a channel and layer. Recomputed activations, padding and logits where nothing is predicted are no
work of the model.

Legend: T tokens, D documents.
"""

from collections.abc import Callable

import numpy as np

from train.config import Config


def training_flops(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    """Floating-point operations of a step over documents of these lengths, [CLS] and [SEP] included.

    Raises KeyError for an objective without a formula. Where whole words are chosen, so many tokens may be a few less.
    """
    return float(_FORMULAS[config.objective.name](config, vocabulary, lengths_D))


def _mlm(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    targets = _chosen(lengths_D - 2, config.objective.mask_ratio).sum()
    return _encoder(config, lengths_D) + _mlm_head(config, vocabulary, targets)


def _mae(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    dropped_D = _chosen(lengths_D - 2, config.objective.drop_ratio)
    kept_D = lengths_D - dropped_D
    return _encoder(config, kept_D) + _decoder(config, vocabulary, kept_D, lengths_D, dropped_D.sum())


def _latent_mae(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    dropped_D = _chosen(lengths_D - 2, config.objective.drop_ratio)
    targets = (lengths_D - 2 if config.objective.reconstruct == "all" else dropped_D).sum()
    decoder = _decoder(config, vocabulary, lengths_D - dropped_D, lengths_D, targets)
    return _encoder(config, lengths_D) + decoder


def _joint(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    kept_D = lengths_D - _chosen(lengths_D - 2, config.objective.drop_ratio)
    masked = _chosen(kept_D - 2, config.objective.mask_ratio).sum()
    return _mae(config, vocabulary, lengths_D) + _mlm_head(config, vocabulary, masked)


def _retromae(config: Config, vocabulary: int, lengths_D: np.ndarray) -> float:
    sizes, tokens, targets = config.model.encoder, lengths_D.sum(), (lengths_D - 2).sum()
    layer = _layer(sizes.hidden_size, sizes.intermediate_size, tokens, (lengths_D**2).sum())
    return _mlm(config, vocabulary, lengths_D) + layer + _mlm_head(config, vocabulary, targets)


_FORMULAS: dict[str, Callable[[Config, int, np.ndarray], float]] = {
    "mlm": _mlm,
    "mae": _mae,
    "latent-mae": _latent_mae,
    "joint": _joint,
    "retromae": _retromae,
}


def _encoder(config: Config, lengths_D: np.ndarray) -> float:
    sizes = config.model.encoder
    gated = sizes.model_type in ("modernbert", "eurobert")  # a third matrix in the feed-forward network
    inner = sizes.intermediate_size * 3 / 2 if gated else sizes.intermediate_size
    return sum(
        _layer(sizes.hidden_size, inner, lengths_D.sum(), _pairs(lengths_D, window).sum())
        for window in _windows(config)
    )


def _windows(config: Config) -> list[int | None]:
    """Of each layer of the encoder: None is global attention."""
    sizes = config.model.encoder
    layers = range(sizes.num_hidden_layers)
    if sizes.model_type != "modernbert":
        return [None for _ in layers]
    every = int(sizes.extra.get("global_attn_every_n_layers", 3))  # type: ignore[arg-type]
    window = int(sizes.extra.get("local_attention", 128)) // 2 + 1  # type: ignore[arg-type]
    return [window if number % every else None for number in layers]


def _pairs(lengths_D: np.ndarray, window: int | None) -> np.ndarray:
    """Pairs of tokens of each document that are less than `window` apart; each token sees itself."""
    if window is None:
        return lengths_D**2
    return np.where(lengths_D <= window, lengths_D**2, lengths_D * (2 * window - 1) - window * (window - 1))


def _layer(width: int, inner: float, tokens: int, pairs: int) -> float:
    """Queries, keys, values and output; two matrices of the feed-forward network; scores and mixtures."""
    return 6 * (4 * width**2 + 2 * width * inner) * tokens + 12 * width * pairs


def _mlm_head(config: Config, vocabulary: int, targets: int) -> float:
    width = config.model.encoder.hidden_size
    return 6 * (width**2 + width * vocabulary) * targets


def _decoder(config: Config, vocabulary: int, kept_D: np.ndarray, lengths_D: np.ndarray, targets: int) -> float:
    own, outer = config.model.resolved_decoder(), config.model.encoder.hidden_size
    layer = _layer(own.hidden_size, own.intermediate_size, lengths_D.sum(), (lengths_D**2).sum())
    edges = own.hidden_size * outer * kept_D.sum() + (own.hidden_size + vocabulary) * outer * targets
    return own.num_hidden_layers * layer + 6 * edges


def _chosen(ordinary_D: np.ndarray, ratio: float) -> np.ndarray:
    """Tokens of each document that are masked or dropped."""
    return np.minimum(np.maximum(1, np.round(ordinary_D * ratio)), ordinary_D).astype(np.int64)
