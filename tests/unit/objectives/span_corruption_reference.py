"""A slow, obvious definition of span corruption, which shares no code with train/."""

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from objective_reference import HeadTotals, Reference, _linear, _norm, _turned, slow_word
from objective_toys import CLS, SEP, SIZE, VOCABULARY, Document

NOISE, KEPT = 7, 8


def slow_counts(ordinary: int, ratio: float, mean: float) -> tuple[int, int]:
    """(noise tokens, spans), as random_spans_noise_mask of T5 has them."""
    if ordinary < 2:
        return 0, 0
    noise = min(max(round(ordinary * ratio), 1), ordinary - 1)
    return noise, min(max(round(noise / mean), 1), noise, ordinary - noise)


def slow_parts(words: Sequence[int], tokens: int, parts: int) -> list[int]:
    """Lengths of the parts: cuts stand behind the tokens with the smallest words. `words[i]` is that of token i + 1."""
    cuts = sorted(sorted(range(1, tokens), key=lambda token: words[token - 1])[: parts - 1])
    return [end - start for start, end in zip([0, *cuts], [*cuts, tokens], strict=True)]


def slow_noise(document: Document, seed: int, epoch: int, ratio: float, mean: float) -> list[tuple[int, int]]:
    """[begin, end) of every noise span, places counted from [CLS]."""
    ordinary = len(document.ids) - 2
    noise, spans = slow_counts(ordinary, ratio, mean)
    if not spans:
        return []
    kept_parts, noise_parts = (
        slow_parts(
            [slow_word(seed, epoch, stream, document.row, document.offset + i) for i in range(1, ordinary + 1)],
            tokens,
            spans,
        )
        for stream, tokens in ((KEPT, ordinary - noise), (NOISE, noise))
    )
    ends = accumulate(kept + gone for kept, gone in zip(kept_parts, noise_parts, strict=True))
    return [(1 + end - gone, 1 + end) for end, gone in zip(ends, noise_parts, strict=True)]


def slow_texts(ids: list[int], noise: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """(what the encoder reads, what the decoder writes); sentinels are the ids behind the vocabulary."""
    seen, written = list(ids), []
    for number, (begin, end) in enumerate(noise):
        written += [SIZE + number, *ids[begin:end]]
    for number, (begin, end) in reversed(list(enumerate(noise))):
        seen[begin:end] = [SIZE + number]
    return seen, [*written, SEP]


class Seq2Seq(Reference):
    """The reference with a table of sentinels beside the vocabulary."""

    def __init__(self, reference: Reference, sentinels: torch.Tensor) -> None:
        self.__dict__ |= reference.__dict__
        self.sentinels = sentinels.detach().clone().requires_grad_()

    def embed(self, ids: list[int]) -> torch.Tensor:
        words = self.lm.bert.embeddings.word_embeddings.weight
        return torch.stack([words[i] if i < SIZE else self.sentinels[i - SIZE] for i in ids])

    def encode_embedded(self, rows: torch.Tensor) -> torch.Tensor:
        return self.lm.bert(inputs_embeds=rows[None], position_ids=torch.arange(len(rows))[None]).last_hidden_state[0]

    def write(self, inputs: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Logits over vocabulary and sentinels after each input."""
        weights, sizes = self.decoder, self.config.model.decoder
        epsilon, heads = self.config.model.encoder.layer_norm_eps, sizes.num_attention_heads
        hidden = _linear(inputs, weights, "widen")
        for layer in range(sizes.num_hidden_layers):
            own = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in weights.items()}
            hidden = hidden + _causal(_norm(hidden, own, "attention_norm", epsilon), own, heads)
            hidden = hidden + _cross(_norm(hidden, own, "cross_norm", epsilon), states, own, heads)
            inner = F.gelu(_linear(_norm(hidden, own, "feed_forward_norm", epsilon), own, "up"))
            hidden = hidden + _linear(inner, own, "down")
        hidden = _norm(hidden, weights, "norm", epsilon)
        hidden = _norm(F.gelu(_linear(hidden, weights, "to_embedding")), weights, "embedding_norm", epsilon)
        words = hidden @ self.lm.bert.embeddings.word_embeddings.weight.T
        return torch.cat([words, hidden @ self.sentinels.T], dim=1) + weights["bias"]


def _causal(hidden: torch.Tensor, weights: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    """Each place looks at itself and what stands before it, one query at a time."""
    query, key, value = _linear(hidden, weights, "qkv").chunk(3, dim=1)
    width, rows = hidden.shape[1] // heads, []
    for place in range(len(hidden)):
        mixed = []
        for own in (slice(head * width, (head + 1) * width) for head in range(heads)):
            turned = _turned(query[place, own], place)
            scores = torch.stack([turned @ _turned(key[other, own], other) for other in range(place + 1)])
            mixed.append((scores / width**0.5).softmax(0) @ value[: place + 1, own])
        rows.append(torch.cat(mixed))
    return _linear(torch.stack(rows), weights, "attention_output")


def _cross(hidden: torch.Tensor, states: torch.Tensor, weights: dict[str, torch.Tensor], heads: int) -> torch.Tensor:
    query = _linear(hidden, weights, "cross_query")
    key, value = _linear(states, weights, "cross_key_value").chunk(2, dim=1)
    width, mixed = hidden.shape[1] // heads, []
    for own in (slice(head * width, (head + 1) * width) for head in range(heads)):
        mixed.append((query[:, own] @ key[:, own].T / width**0.5).softmax(-1) @ value[:, own])
    return _linear(torch.cat(mixed, dim=1), weights, "cross_output")


def slow_span_corruption(reference: Seq2Seq, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """One document after another."""
    settings, total = reference.config.objective, HeadTotals(torch.zeros(()))
    for document in documents:
        seed = reference.config.run.seed
        noise = slow_noise(document, seed, epoch, settings.mask_ratio, settings.mean_span_length)
        if not noise:
            continue
        seen, written = slow_texts(document.ids, noise)
        states = reference.encode_embedded(reference.embed(seen))
        logits = reference.write(reference.embed([CLS, *written[:-1]]), states)
        for row, truth in zip(logits, written, strict=True):
            total.add(row, truth)
    assert total.frequent <= sum(document.ids.count(VOCABULARY.most_frequent_id) for document in documents)
    return [total]
