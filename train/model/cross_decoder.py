"""The decoder that writes a sequence from left to right with the encoder's states of the same document in sight.

Vaswani et al. 2017 ("Attention Is All You Need", section 3): causal self-attention, attention to the encoder's states,
feed-forward network. As in decoder.py layers normalise before each of them, and positions are rotations of queries and
keys in self-attention (Su et al. 2021); attention to the encoder knows no positions, its states carry their own.

Legend: T tokens of the encoder, U tokens of the decoder, N targets, E encoder width, D decoder width, H heads, W width
of a head, V outputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from train.config import DecoderSizes
from train.config import Model as ModelConfig
from train.model.attention import document_attention
from train.model.decoder import Rotation
from train.model.documents import Documents
from train.model.layers import prepare_layers


class CrossDecoderLayer(nn.Module):
    """One layer; the encoder's states are normalised already, or as the encoder leaves them."""

    def __init__(self, sizes: DecoderSizes, encoder_width: int, epsilon: float) -> None:
        super().__init__()
        width = sizes.hidden_size
        self.heads = sizes.num_attention_heads
        self.attention_norm = nn.LayerNorm(width, eps=epsilon)
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.cross_norm = nn.LayerNorm(width, eps=epsilon)
        self.cross_query = nn.Linear(width, width)
        self.cross_key_value = nn.Linear(encoder_width, 2 * width)
        self.cross_output = nn.Linear(width, width)
        self.feed_forward_norm = nn.LayerNorm(width, eps=epsilon)
        self.up = nn.Linear(width, sizes.intermediate_size)
        self.down = nn.Linear(sizes.intermediate_size, width)

    def forward(
        self,
        hidden_UD: torch.Tensor,
        rotation: Rotation,
        documents: Documents,
        states_TE: torch.Tensor,
        state_documents: Documents,
    ) -> torch.Tensor:
        hidden_UD = hidden_UD + self._itself(self.attention_norm(hidden_UD), rotation, documents)
        hidden_UD = hidden_UD + self._encoder(self.cross_norm(hidden_UD), documents, states_TE, state_documents)
        return hidden_UD + self.down(F.gelu(self.up(self.feed_forward_norm(hidden_UD))))  # type: ignore[no-any-return]

    def _itself(self, hidden_UD: torch.Tensor, rotation: Rotation, documents: Documents) -> torch.Tensor:
        query, key, value = self.qkv(hidden_UD).view(len(hidden_UD), 3, self.heads, -1).unbind(1)
        mixed_UHW = document_attention(rotation(query), rotation(key), value, documents, causal=True)
        return self.attention_output(mixed_UHW.reshape(len(hidden_UD), -1))  # type: ignore[no-any-return]

    def _encoder(
        self, hidden_UD: torch.Tensor, documents: Documents, states_TE: torch.Tensor, state_documents: Documents
    ) -> torch.Tensor:
        query_UHW = self.cross_query(hidden_UD).view(len(hidden_UD), self.heads, -1)
        key_THW, value_THW = self.cross_key_value(states_TE).view(len(states_TE), 2, self.heads, -1).unbind(1)
        mixed_UHW = document_attention(query_UHW, key_THW, value_THW, documents, key_documents=state_documents)
        return self.cross_output(mixed_UHW.reshape(len(hidden_UD), -1))  # type: ignore[no-any-return]


class CrossDecoder(nn.Module):
    """Layers between two projections: from embedded tokens to states, from states to what a tied embedding projects."""

    def __init__(self, model: ModelConfig, outputs: int) -> None:
        super().__init__()
        encoder, sizes = model.encoder, model.resolved_decoder()
        width, epsilon = sizes.hidden_size, encoder.layer_norm_eps
        self.head_width = width // sizes.num_attention_heads
        self.widen = nn.Linear(encoder.hidden_size, width)
        self.layers = nn.ModuleList(
            CrossDecoderLayer(sizes, encoder.hidden_size, epsilon) for _ in range(sizes.num_hidden_layers)
        )
        prepare_layers(self.layers, model)
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.to_embedding = nn.Linear(width, encoder.hidden_size)
        self.embedding_norm = nn.LayerNorm(encoder.hidden_size, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._initialise(encoder.initializer_range)

    def _initialise(self, deviation: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=deviation)
                nn.init.zeros_(module.bias)

    def forward(
        self, embedded_UE: torch.Tensor, documents: Documents, states_TE: torch.Tensor, state_documents: Documents
    ) -> torch.Tensor:
        """States [U, D] that predict the token after each one.

        `embedded_UE` are the decoder's own tokens, `states_TE` the encoder's last states; document i of the one reads
        document i of the other. Neither may be empty.
        """
        hidden_UD = self.widen(embedded_UE)
        rotation = Rotation(documents.positions_T, self.head_width)
        for layer in self.layers:
            hidden_UD = layer(hidden_UD, rotation, documents, states_TE, state_documents)
        return self.norm(hidden_UD)  # type: ignore[no-any-return]

    def head(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """States [N, E] that an embedding [V, E] and `bias` project to logits [N, V]: a head like BERT's."""
        return self.embedding_norm(F.gelu(self.to_embedding(hidden_ND)))  # type: ignore[no-any-return]
