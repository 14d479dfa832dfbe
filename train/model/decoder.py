"""The decoder that rebuilds dropped tokens from the encoder's states.

He et al. 2021 ("Masked Autoencoders Are Scalable Vision Learners", section 3) and Meng et al. 2023
("Representation Deficiency in Masked Language Modeling", the same for text): states of kept tokens go back to their
places, one learned vector stands at every dropped place, decoder positions are added to all.

Legend: T tokens, K kept tokens, N targets, E encoder width, D decoder width, H heads, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from train.config import Model as ModelConfig
from train.model.attention import document_attention
from train.model.documents import Documents


class DecoderLayer(nn.Module):
    """A transformer layer that normalises before attention and before the feed-forward network."""

    def __init__(self, hidden_size: int, heads: int, intermediate_size: int, epsilon: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_output = nn.Linear(hidden_size, hidden_size)
        self.feed_forward_norm = nn.LayerNorm(hidden_size, eps=epsilon)
        self.up = nn.Linear(hidden_size, intermediate_size)
        self.down = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_TD: torch.Tensor, documents: Documents) -> torch.Tensor:
        tokens = len(hidden_TD)
        qkv = self.qkv(self.attention_norm(hidden_TD)).view(tokens, 3, self.heads, -1)
        mixed_THW = document_attention(qkv[:, 0], qkv[:, 1], qkv[:, 2], documents)
        hidden_TD = hidden_TD + self.attention_output(mixed_THW.reshape(tokens, -1))
        return hidden_TD + self.down(F.gelu(self.up(self.feed_forward_norm(hidden_TD))))  # type: ignore[no-any-return]


def sinusoids(positions: int, width: int) -> torch.Tensor:
    """Sines and cosines [positions, width] of geometrically spaced wavelengths (Vaswani et al. 2017, section 3.5).

    He et al. fix them; here they are the start of learned positions, from which neighbours can be told apart at once.
    """
    angles = torch.outer(torch.arange(positions), 10000 ** (-torch.arange(0, width, 2) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width]


class Decoder(nn.Module):
    """Self-attention over kept states and mask vectors of the same document; logits tied to the encoder's embedding."""

    def __init__(self, model: ModelConfig, vocabulary_size: int) -> None:
        super().__init__()
        encoder, decoder = model.encoder, model.resolved_decoder()
        width, epsilon = decoder.hidden_size, encoder.layer_norm_eps
        self.gradient_checkpointing = model.gradient_checkpointing
        self.widen = nn.Linear(encoder.hidden_size, width)
        self.mask_vector = nn.Parameter(torch.empty(width))
        self.positions = nn.Embedding(encoder.max_position_embeddings, width)
        self.layers = nn.ModuleList(
            DecoderLayer(width, decoder.num_attention_heads, decoder.intermediate_size, epsilon)
            for _ in range(decoder.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=epsilon)
        self.to_embedding = nn.Linear(width, encoder.hidden_size)
        self.embedding_norm = nn.LayerNorm(encoder.hidden_size, eps=epsilon)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self._initialise(encoder.initializer_range)

    def _initialise(self, deviation: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=deviation)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_vector, std=deviation)
        with torch.no_grad():
            self.positions.weight.copy_(sinusoids(*self.positions.weight.shape))

    def forward(
        self, kept_KE: torch.Tensor, kept_K: torch.Tensor, positions_T: torch.Tensor, documents: Documents
    ) -> torch.Tensor:
        """States [T, D] for every token; `kept_K` are the places of the encoder's states among the T tokens."""
        hidden_TD = self.mask_vector.expand(len(positions_T), -1)
        hidden_TD = hidden_TD.index_copy(0, kept_K, self.widen(kept_KE)) + self.positions(positions_T)
        for layer in self.layers:
            hidden_TD = self._run(layer, hidden_TD, documents)
        return self.norm(hidden_TD)  # type: ignore[no-any-return]

    def logits(self, hidden_ND: torch.Tensor, embedding_VE: torch.Tensor) -> torch.Tensor:
        """Vocabulary logits [N, V] at the targets: a head like BERT's, then the tied embedding."""
        projected_NE = self.embedding_norm(F.gelu(self.to_embedding(hidden_ND)))
        return F.linear(projected_NE, embedding_VE, self.bias)

    def _run(self, layer: nn.Module, hidden_TD: torch.Tensor, documents: Documents) -> torch.Tensor:
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, hidden_TD, documents, use_reentrant=False)  # type: ignore[no-any-return]
        return layer(hidden_TD, documents)  # type: ignore[no-any-return]
