"""Slow, obvious definitions of the objectives, which share no code with train/.

Random numbers in Python's unbounded integers, one document and one place at a time, transformers' own BERT as the
encoder and a decoder out of loops.
"""

import cmath
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import torch
import torch.nn.functional as F
from objective_toys import MASK, PAD, VOCABULARY, Document, word_starts
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from train.config import Config, Objective

WORD = 1 << 64
GOLDEN = 0x9E3779B97F4A7C15
SELECT, FATE, REPLACEMENT, DROP, SELECT_LENGTH, DROP_LENGTH = range(6)


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

    def choose(
        self, stream: int, candidates: Sequence[int], ratio: float, settings: Objective | None = None
    ) -> "Choice":
        """As many candidates as the ratio says, in the configured units (tokens where there are no settings)."""
        budget = slow_count(len(candidates), ratio)
        unit = "token" if settings is None else settings.mask_unit if stream == SELECT else settings.drop_unit
        if unit == "token":
            by_word = sorted(candidates, key=lambda place: self.word(stream, place))
            return Choice(sorted(by_word[:budget]), {})
        words = self.words_of(candidates)
        if unit == "word":
            order = [(word, None) for word in sorted(words, key=lambda word: self.word(stream, word[0]))]
        else:
            order = self.spans(stream, words, settings)
        places, drawn = [], {}
        for (_, tokens), start in order:
            if len(places) + len(tokens) <= budget:
                places += tokens
                drawn |= {} if start is None else dict.fromkeys(tokens, start)
        return Choice(sorted(places), drawn)

    def words_of(self, candidates: Sequence[int]) -> list[tuple[int, list[int]]]:
        """(first token, candidates) of every word that has some."""
        words: dict[int, list[int]] = {}
        first = 0
        for place, start in enumerate(word_starts(self.document)):
            first = place if start else first
            if place in candidates:
                words.setdefault(first, []).append(place)
        return list(words.items())

    def spans(self, stream: int, words: list, settings: Objective) -> list:
        """Words with the first token of the span that covers them first, spans in the order of their random words."""
        lengths = SELECT_LENGTH if stream == SELECT else DROP_LENGTH
        covered: dict[int, int] = {}
        for number in sorted(range(len(words)), key=lambda number: self.word(stream, words[number][0])):
            length = slow_span_length(self.word(lengths, words[number][0]), settings)
            for word in range(number, min(number + length, len(words))):
                covered.setdefault(word, words[number][0])
        return [(words[word], start) for word, start in covered.items()]

    def corrupted(self, place: int, choice: "Choice", masked: float, random: float) -> int:
        """What stands at a target: [MASK] below the first share, a random id below the sum, else the token."""
        fate = Fraction(self.word(FATE, choice.drawn.get(place, place)), 1 << 63)
        if fate < Fraction(masked):
            return MASK
        if fate < Fraction(masked + random):
            upper_32_bits = self.word(REPLACEMENT, place) >> 31
            return int(VOCABULARY.ordinary_ids[upper_32_bits * len(VOCABULARY.ordinary_ids) >> 32])
        return self.document.ids[place]


@dataclass(frozen=True)
class Choice:
    """Chosen places, and the token whose draw decides their fate where it is not their own."""

    places: list[int]
    drawn: dict[int, int]


def slow_span_length(word: int, settings: Objective) -> int:
    """Geometric from 1 to the longest, renormalised: the inverse of its distribution function."""
    shares = [(1 - settings.span_probability) ** k for k in range(settings.max_span_words)]
    return sum(word / WORD * 2 * sum(shares) < sum(shares[k:]) for k in range(settings.max_span_words))


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
        self.decoder, self.boundary = (
            {name: tensor.clone().requires_grad_() for name, tensor in part.state_dict().items()} if part else {}
            for part in (getattr(objective, "decoder", None), getattr(objective, "boundary", None))
        )

    def gradients(self) -> dict[str, torch.Tensor]:
        """By the names that the objective's parameters have."""
        encoder = {f"encoder.masked_lm.{name}": tensor.grad for name, tensor in self.lm.named_parameters()}
        decoder = {f"decoder.{name}": tensor.grad for name, tensor in self.decoder.items()}
        return encoder | decoder | {f"boundary.{name}": tensor.grad for name, tensor in self.boundary.items()}

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

    def boundary_logits(self, before: torch.Tensor, after: torch.Tensor, place: int) -> torch.Tensor:
        """SpanBERT, section 3.2; `place` is counted from 1, and places from the 20th on are one."""
        weights, epsilon = self.boundary, self.config.model.encoder.layer_norm_eps
        inner = torch.cat([before, after, weights["place.weight"][min(place, 20) - 1]])
        for layer in ("first", "second"):
            inner = _norm(F.gelu(_linear(inner, weights, layer)), weights, f"{layer}_norm", epsilon)
        return self.lm.bert.embeddings.word_embeddings.weight @ inner + weights["bias"]


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
    guesses: list[int] = field(default_factory=list)
    truths: list[int] = field(default_factory=list)

    def add(self, logits: torch.Tensor, truth: int) -> None:
        self.guesses.append(int(logits.argmax()))
        self.truths.append(truth)
        self.loss = self.loss - logits.log_softmax(-1)[truth]
        self.hits += int(logits.argmax()) == truth
        self.frequent += truth == VOCABULARY.most_frequent_id


def slow_sums(reference: Reference, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """What the configured objective is defined to sum over these documents, one total per head."""
    config = reference.config
    score = {"mlm": _mlm, "mae": _mae, "latent-mae": _latent_mae, "joint": _joint}[config.objective.name]
    heads = 2 if config.objective.name == "joint" or config.objective.boundary_weight else 1
    totals = [HeadTotals(torch.zeros(())) for _ in range(heads)]
    for document in documents:
        score(reference, Draws(document, config.run.seed, epoch), totals)
    return totals


def _mlm(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    ids = draws.document.ids
    states, targets = _masked_heads(reference, draws, list(range(len(ids))), totals[0])
    if reference.config.objective.boundary_weight:
        for place in targets:
            before, after = place, place
            while before in targets:
                before -= 1
            while after in targets:
                after += 1
            totals[1].add(reference.boundary_logits(states[before], states[after], place - before), ids[place])


def _mae(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    kept, dropped = _split(draws, reference.config.objective)
    states = reference.encode([draws.document.ids[place] for place in kept], kept)
    _rebuild(reference, draws.document, states, kept, dropped, totals[0])


def _latent_mae(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    kept, dropped = _split(draws, reference.config.objective)
    places = list(range(len(draws.document.ids)))
    states = reference.encode(draws.document.ids, places)[kept]
    everywhere = reference.config.objective.reconstruct == "all"
    _rebuild(reference, draws.document, states, kept, places[1:-1] if everywhere else dropped, totals[0])


def _joint(reference: Reference, draws: Draws, totals: list[HeadTotals]) -> None:
    kept, dropped = _split(draws, reference.config.objective)
    states, _ = _masked_heads(reference, draws, kept, totals[0])
    _rebuild(reference, draws.document, states, kept, dropped, totals[1])


def _split(draws: Draws, settings: Objective) -> tuple[list[int], list[int]]:
    length = len(draws.document.ids)
    dropped = draws.choose(DROP, range(1, length - 1), settings.drop_ratio, settings).places
    return [place for place in range(length) if place not in dropped], dropped


def _masked_heads(
    reference: Reference, draws: Draws, visible: list[int], total: HeadTotals
) -> tuple[torch.Tensor, list[int]]:
    """Mask among the visible places, predict, and give the encoder's states at them."""
    settings, ids = reference.config.objective, draws.document.ids
    choice = draws.choose(SELECT, visible[1:-1], settings.mask_ratio, settings)
    seen = [
        draws.corrupted(place, choice, settings.mask_token_share, settings.random_token_share)
        if place in choice.places
        else ids[place]
        for place in visible
    ]
    states = reference.encode(seen, visible)
    for place in choice.places:
        total.add(reference.lm.cls(states[visible.index(place)]), ids[place])
    return states, choice.places


def _rebuild(
    reference: Reference,
    document: Document,
    states: torch.Tensor,
    kept: list[int],
    targets: list[int],
    total: HeadTotals,
) -> None:
    hidden = reference.decode(states, kept, len(document.ids))
    for place in targets:
        total.add(reference.decoder_logits(hidden[place]), document.ids[place])
