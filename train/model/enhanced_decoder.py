"""The decoder of one layer that reads a document out of one vector and a few of its tokens, others for every query.

Xiao et al. 2022 ("RetroMAE", section 3.3, "Enhanced Decoding"): queries from the sentence's state and positions, keys
and values from that state and the embedded tokens, a mask of its own for every query, the residual from the query
stream. The layer normalises after attention and after the feed-forward network, as BERT's do.

Legend: T tokens, D width, H heads, W width of a head, B documents of a bucket, L their padded length.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN

from train.config import Encoder as EncoderConfig
from train.config import Model as ModelConfig
from train.model.buckets import Bucket, Buckets
from train.model.encoder import Encoder
from train.model.layers import prepare_layers

_PAIRS = 1 << 24  # of a query and a key whose mask is drawn together: 64 documents of 512 tokens

Seen = Callable[[Bucket], torch.Tensor]  # bool[B, L, L]: what each query sees; at least one key, in padding too


def documents_per_bucket(padded: int) -> int:
    """Most documents of a padded length whose masks are drawn together."""
    return _PAIRS // padded**2


class EnhancedLayer(nn.Module):
    """One transformer layer at the encoder's sizes."""

    def __init__(self, sizes: EncoderConfig) -> None:
        super().__init__()
        width, inner, epsilon = sizes.hidden_size, sizes.intermediate_size, sizes.layer_norm_eps
        self.heads = sizes.num_attention_heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.attention_output = nn.Linear(width, width)
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)
        self.activation = ACT2FN[sizes.hidden_act]
        self.dropout = nn.Dropout(sizes.hidden_dropout_prob)

    def forward(self, query_TD: torch.Tensor, key_TD: torch.Tensor, buckets: Buckets, seen: Seen) -> torch.Tensor:
        """States [T, D]; each query sees those keys of its document that `seen` says."""
        tokens = len(query_TD)
        query_THW = self.query(query_TD).view(tokens, self.heads, -1)
        key_THW, value_THW = self.key_value(key_TD).view(tokens, 2, self.heads, -1).unbind(1)
        mixed_THW = _attend(query_THW, key_THW, value_THW, buckets, seen)
        mixed_TD = self.dropout(self.attention_output(mixed_THW.reshape(tokens, -1)))
        hidden_TD = self.attention_norm(query_TD + mixed_TD)
        inner_TD = self.dropout(self.down(self.activation(self.up(hidden_TD))))
        return self.feed_forward_norm(hidden_TD + inner_TD)  # type: ignore[no-any-return]


class EnhancedDecoder(nn.Module):
    """The layer, and positions of its own where the encoder has no vectors for them."""

    def __init__(self, encoder: Encoder, model: ModelConfig) -> None:
        super().__init__()
        sizes = model.encoder
        self.layer = EnhancedLayer(sizes)
        # Never compiled: the shapes of its buckets are others in every batch.
        prepare_layers([self.layer], model.model_copy(update={"compile": False}))
        self.positions: nn.Embedding | None = None
        if _position_table(encoder) is None:
            self.positions = nn.Embedding(sizes.max_position_embeddings, sizes.hidden_size)
        self._initialise(sizes.initializer_range)

    def _initialise(self, deviation: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, query_TD: torch.Tensor, key_TD: torch.Tensor, buckets: Buckets, seen: Seen) -> torch.Tensor:
        """States [T, D]; each query sees those keys of its document that `seen` says."""
        return self.layer(query_TD, key_TD, buckets, seen)  # type: ignore[no-any-return]

    def position_vectors(self, encoder: Encoder, positions_T: torch.Tensor) -> torch.Tensor:
        """p_i [T, D]: rows of the encoder's table where it has one, else of this decoder's own."""
        table = _position_table(encoder)
        if table is None:
            return self.positions(positions_T)  # type: ignore[no-any-return, misc]
        return table(_table_rows(table, positions_T))  # type: ignore[no-any-return]

    def embedded(self, encoder: Encoder, positions_T: torch.Tensor, **tokens: torch.Tensor) -> torch.Tensor:
        """What the encoder's embedding layer makes of tokens with their positions: [T, D].

        `tokens` is `input_ids` [T] or, in the place of their vectors, `inputs_embeds` [T, D].
        """
        layer, table = _embedding_layer(encoder), _position_table(encoder)
        inputs = {name: tensor[None] for name, tensor in tokens.items()}
        if layer is not None and table is not None:
            return layer(**inputs, position_ids=_table_rows(table, positions_T)[None])[0]  # type: ignore[no-any-return]
        if layer is not None:
            tokens_TD = layer(**inputs)[0]
        elif "input_ids" in tokens:  # nothing but a table of tokens
            tokens_TD = encoder.masked_lm.get_input_embeddings()(tokens["input_ids"])
        else:
            tokens_TD = tokens["inputs_embeds"]
        return tokens_TD + self.position_vectors(encoder, positions_T)  # type: ignore[no-any-return]


def _embedding_layer(encoder: Encoder) -> nn.Module | None:
    """Tokens, positions where they are learned, norm and dropout; None where the encoder has tokens alone."""
    return getattr(encoder.masked_lm.base_model, "embeddings", None)


def _position_table(encoder: Encoder) -> nn.Embedding | None:
    """The encoder's learned positions, where it has them."""
    return getattr(_embedding_layer(encoder), "position_embeddings", None)


def _table_rows(table: nn.Embedding, positions_T: torch.Tensor) -> torch.Tensor:
    """RoBERTa counts positions from behind its padding row; BERT has none."""
    return positions_T if table.padding_idx is None else positions_T + table.padding_idx + 1


def _attend(
    query_THW: torch.Tensor, key_THW: torch.Tensor, value_THW: torch.Tensor, buckets: Buckets, seen: Seen
) -> torch.Tensor:
    """Softmax attention with a mask for every query, one bucket after another; the result is [T, H, W]."""
    parts = []
    for bucket in buckets.groups:
        places, (rows, padded) = bucket.places_BL.flatten(), bucket.places_BL.shape
        query, key, value = (
            x.index_select(0, places).view(rows, padded, *x.shape[1:]).transpose(1, 2)
            for x in (query_THW, key_THW, value_THW)
        )
        mixed_BHLW = F.scaled_dot_product_attention(query, key, value, attn_mask=seen(bucket)[:, None])
        parts.append(mixed_BHLW.transpose(1, 2).flatten(0, 1))
    return torch.cat(parts).index_select(0, buckets.slots_T)
