"""Slow, obvious definitions of the objectives, which share no code with train/.

Random numbers in Python's unbounded integers, one document and one place at a time, transformers' own BERT as the
encoder and a decoder out of loops.
"""

import cmath
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from objective_toys import MASK, PAD, VOCABULARY, Document
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from train.config import Config

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
SELECT, FATE, REPLACEMENT, DROP = 0, 1, 2, 3


# ---------------------------------------------------------------------------------------------------------------------
# Random numbers


def splitmix64_finalizer(word: int) -> int:
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % WORD
    return word ^ (word >> 31)


def slow_key(*values: int) -> int:
    """A SplitMix64 step from each value in turn, the state being the last output xor the value."""
    word = 0
    for value in values:
        word = splitmix64_finalizer(((word ^ value % WORD) + GOLDEN) % WORD)
    return word


def slow_word(seed: int, epoch: int, stream: int, row: int, offset: int) -> int:
    """The 63 random bits of one token."""
    word = splitmix64_finalizer((slow_key(seed, epoch, stream) + row * GOLDEN) % WORD)
    return splitmix64_finalizer((word + offset * 0xBF58476D1CE4E5B9) % WORD) // 2


# ---------------------------------------------------------------------------------------------------------------------
# Choosing and corrupting


def slow_count(candidates: int, ratio: float) -> int:
    """create_pretraining_data.py of BERT: max(1, round(share)), and never more than there are."""
    return min(max(1, round(candidates * ratio)), candidates)


@dataclass(frozen=True)
class Draws:
    """The random words of one document."""

    document: Document
    seed: int
    epoch: int

    def word(self, stream: int, place: int) -> int:
        return slow_word(self.seed, self.epoch, stream, self.document.row, self.document.offset + place)

    def choose(self, stream: int, candidates: Sequence[int], ratio: float) -> list[int]:
        """The candidates with the smallest words, in their order in the text."""
        by_word = sorted(candidates, key=lambda place: self.word(stream, place))
        return sorted(by_word[: slow_count(len(candidates), ratio)])

    def corrupted(self, place: int, masked: float, random: float) -> int:
        """What stands at a target: [MASK] below the first share, a random id below the sum, else the token."""
        fate = Fraction(self.word(FATE, place), 1 << 63)
        if fate < Fraction(masked):
            return MASK
        if fate < Fraction(masked + random):
            upper_32_bits = self.word(REPLACEMENT, place) >> 31
            return int(VOCABULARY.ordinary_ids[upper_32_bits * len(VOCABULARY.ordinary_ids) >> 32])
        return self.document.ids[place]


# ---------------------------------------------------------------------------------------------------------------------
# The models


class Reference:
    """A copy of an objective's weights in transformers' BertForMaskedLM and in plain tensors for the decoder."""

    def __init__(self, objective: nn.Module, config: Config, attention: str, pad_to: int | None) -> None:
        encoder = config.model.encoder
        self.config, self.pad_to = config, pad_to
        sizes = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps")
        settings = {name: getattr(encoder, name) for name in (*sizes, "max_position_embeddings", "hidden_act")}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        bert = BertConfig(vocab_size=VOCABULARY.size, pad_token_id=PAD, **dropout, **settings)
        bert._attn_implementation = attention
        self.lm = BertForMaskedLM(bert)
        self.lm.load_state_dict(objective.encoder.masked_lm.state_dict())
        decoder = objective.decoder.state_dict() if hasattr(objective, "decoder") else {}
        self.decoder = {name: tensor.clone().requires_grad_() for name, tensor in decoder.items()}

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names that the objective's parameters have."""
        encoder = {f"encoder.masked_lm.{name}": tensor.grad for name, tensor in self.lm.named_parameters()}
        return encoder | {f"decoder.{name}": tensor.grad for name, tensor in self.decoder.items()}

    def encode(self, ids: list[int], positions: list[int]) -> torch.Tensor:
        """States of one document, alone in its batch; padded, with a mask over the padding, where that is asked."""
        padding = [PAD] * (self.pad_to - len(ids)) if self.pad_to else []
        output = self.lm.bert(
            input_ids=torch.tensor([ids + padding]),
            attention_mask=torch.tensor([[1] * len(ids) + [0] * len(padding)]),
            position_ids=torch.tensor([positions + [0] * len(padding)]),
        )
        return output.last_hidden_state[0, : len(ids)]

    def decode(self, states: torch.Tensor, kept: list[int], length: int) -> torch.Tensor:
        """States of all places of one document from those of the kept ones, a place and a head at a time."""
        weights, sizes = self.decoder, self.config.model.decoder
        epsilon = self.config.model.encoder.layer_norm_eps
        rows = []
        for place in range(length):
            if place in kept:
                rows.append(weights["widen.weight"] @ states[kept.index(place)] + weights["widen.bias"])
            else:
                rows.append(weights["mask_vector"])
        hidden = torch.stack(rows)
        for layer in range(sizes.num_hidden_layers):
            own = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in weights.items()}
            hidden = hidden + _attention(_norm(hidden, own, "attention_norm", epsilon), own, sizes.num_attention_heads)
            inner = F.gelu(_linear(_norm(hidden, own, "feed_forward_norm", epsilon), own, "up"))
            hidden = hidden + _linear(inner, own, "down")
        return _norm(hidden, weights, "norm", epsilon)

    def decoder_logits(self, states: torch.Tensor) -> torch.Tensor:
        """A head like BERT's: dense, GELU, norm, then the encoder's token embedding and a bias of its own."""
        embedding = self.lm.bert.embeddings.word_embeddings.weight
        inner = F.gelu(_linear(states, self.decoder, "to_embedding"))
        epsilon = self.config.model.encoder.layer_norm_eps
        return _norm(inner, self.decoder, "embedding_norm", epsilon) @ embedding.T + self.decoder["bias"]


def _norm(hidden: torch.Tensor, weights: dict[str, torch.Tensor], name: str, epsilon: float) -> torch.Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    deviation = (centred.square().mean(-1, keepdim=True) + epsilon).sqrt()
    return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(hidden: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return hidden @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def _attention(hidden: torch.Tensor, weights: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    width = hidden.shape[1] // heads
    query, key, value = _linear(hidden, weights, "qkv").chunk(3, dim=1)
    mixed = []
    for head in range(heads):
        own = slice(head * width, (head + 1) * width)
        turned_query, turned_key = (
            torch.stack([_turned(row, place) for place, row in enumerate(part[:, own])]) for part in (query, key)
        )
        scores = turned_query @ turned_key.T / width**0.5
        mixed.append(scores.softmax(-1) @ value[:, own])
    return _linear(torch.cat(mixed, dim=1), weights, "attention_output")


def _turned(head: torch.Tensor, place: int) -> torch.Tensor:
    """RoFormer, section 3.2: channels i and i + W/2 are a complex number that turns by 10000^(-2i/W) per place."""
    half = len(head) // 2
    pairs = [
        torch.complex(head[i], head[i + half]) * cmath.exp(1j * place * 10000 ** (-2 * i / len(head)))
        for i in range(half)
    ]
    return torch.stack([pair.real for pair in pairs] + [pair.imag for pair in pairs])


# ---------------------------------------------------------------------------------------------------------------------
# The objectives


@dataclass
class HeadTotals:
    """Sums of one head over the targets."""

    loss: torch.Tensor
    hits: int = 0
    frequent: int = 0

    def add(self, logits: torch.Tensor, truth: int) -> None:
        self.loss = self.loss - logits.log_softmax(-1)[truth]
        self.hits += int(logits.argmax()) == truth
        self.frequent += truth == VOCABULARY.most_frequent_id


def slow_sums(reference: Reference, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """What the configured objective is defined to sum over these documents, one total per head."""
    config = reference.config
    score = {"mlm": _mlm, "mae": _mae, "joint": _joint}[config.objective.name]
    totals = [HeadTotals(torch.zeros(())) for _ in range(2 if config.objective.name == "joint" else 1)]
    for document in documents:
        score(reference, Draws(document, config.run.seed, epoch), totals)
    return totals


def _mlm(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    places = range(len(draws.document.ids))
    _masked_heads(reference, draws, list(places), totals[0])


def _mae(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    kept, dropped = _split(draws, reference.config.objective.drop_ratio)
    states = reference.encode([draws.document.ids[place] for place in kept], kept)
    _rebuild(reference, draws.document, states, kept, dropped, totals[0])


def _joint(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    kept, dropped = _split(draws, reference.config.objective.drop_ratio)
    states = _masked_heads(reference, draws, kept, totals[0])
    _rebuild(reference, draws.document, states, kept, dropped, totals[1])


def _split(draws: Draws, ratio: float) -> tuple[list[int], list[int]]:
    length = len(draws.document.ids)
    dropped = draws.choose(DROP, range(1, length - 1), ratio)
    return [place for place in range(length) if place not in dropped], dropped


def _masked_heads(reference: Reference, draws: Draws, visible: list[int], total: HeadTotals) -> torch.Tensor:
    """Mask among the visible places, predict, and give the encoder's states at them."""
    settings, ids = reference.config.objective, draws.document.ids
    targets = draws.choose(SELECT, visible[1:-1], settings.mask_ratio)
    seen = [
        draws.corrupted(place, settings.mask_token_share, settings.random_token_share)
        if place in targets
        else ids[place]
        for place in visible
    ]
    states = reference.encode(seen, visible)
    for place in targets:
        total.add(reference.lm.cls(states[visible.index(place)]), ids[place])
    return states


def _rebuild(
    reference: Reference,
    document: Document,
    states: torch.Tensor,
    kept: list[int],
    dropped: list[int],
    total: HeadTotals,
) -> None:
    hidden = reference.decode(states, kept, len(document.ids))
    for place in dropped:
        total.add(reference.decoder_logits(hidden[place]), document.ids[place])
