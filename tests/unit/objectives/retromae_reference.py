"""A slow, obvious definition of RetroMAE, which shares no code with train/: a query, a key and a head at a time."""

from collections.abc import Sequence
from fractions import Fraction

import torch
import torch.nn.functional as F
from objective_reference import Draws, HeadTotals, Reference, _masked_heads, slow_word
from objective_toys import Document, word_starts

VISIBLE = 6


def slow_retromae(reference: Reference, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """The sums of both heads; each document's own state feeds the decoder."""
    return _sums(reference, documents, epoch, rolled=0)


def slow_shuffled_retromae(reference: Reference, documents: Sequence[Document], epoch: int) -> list[HeadTotals]:
    """The same with the state of the document before, and of the last one for the first."""
    return _sums(reference, documents, epoch, rolled=1)


def _sums(reference: Reference, documents: Sequence[Document], epoch: int, rolled: int) -> list[HeadTotals]:
    totals = [HeadTotals(torch.zeros(())), HeadTotals(torch.zeros(()))]
    sentences = []
    for document in documents:
        draws = Draws(document, reference.config.run.seed, epoch)
        states, _ = _masked_heads(reference, draws, list(range(len(document.ids))), totals[0])
        sentences.append(states[0])
    for number, document in enumerate(documents):
        draws = Draws(document, reference.config.run.seed, epoch)
        rows = slow_decoder(reference, draws, sentences[number - rolled])
        for place, row in rows.items():
            totals[1].add(reference.lm.cls(row), document.ids[place])
    return totals


def visible_places(draws: Draws, query: int, ratio: float) -> list[int]:
    """What a query sees: [CLS], [SEP] and the words that its draws do not hide, itself never."""
    length, begin, places = len(draws.document.ids), 0, []
    for place, start in enumerate(word_starts(draws.document)):
        begin = place if start else begin
        chance = slow_word(draws.seed, draws.epoch, VISIBLE, draws.word(VISIBLE, query), begin)
        special = place in (0, length - 1)
        if special or (place != query and Fraction(chance, 1 << 63) >= Fraction(ratio)):
            places.append(place)
    return places


def slow_decoder(reference: Reference, draws: Draws, sentence: torch.Tensor) -> dict[int, torch.Tensor]:
    """The decoder's state at every ordinary place."""
    settings, embeddings = reference.config.objective, reference.lm.bert.embeddings
    ids = draws.document.ids
    positions = torch.arange(len(ids))[None]
    keys = list(embeddings(input_ids=torch.tensor([ids]), position_ids=positions)[0])
    keys[0] = sentence
    if settings.decoder_query == "positions":
        queries = [sentence + row for row in embeddings.position_embeddings.weight[: len(ids)]]
    else:
        repeated = torch.stack([sentence] * len(ids))[None]
        queries = list(embeddings(inputs_embeds=repeated, position_ids=positions)[0])
    rows = {}
    for query in range(1, len(ids) - 1):
        seen = [keys[place] for place in visible_places(draws, query, settings.decoder_mask_ratio)]
        rows[query] = _layer(reference, queries[query], seen)
    return rows


def _layer(reference: Reference, query: torch.Tensor, keys: list[torch.Tensor]) -> torch.Tensor:
    """A layer of BERT with one query: attention, norm, feed-forward network, norm."""
    sizes = reference.config.model.encoder
    width = sizes.hidden_size // sizes.num_attention_heads
    projected_query = _linear(reference, query, "query")
    pairs = [_linear(reference, key, "key_value").chunk(2) for key in keys]
    mixed = []
    for head in range(sizes.num_attention_heads):
        own = slice(head * width, (head + 1) * width)
        scores = torch.stack([projected_query[own] @ key[own] / width**0.5 for key, _ in pairs])
        mixed.append(sum(share * value[own] for share, (_, value) in zip(scores.softmax(0), pairs, strict=True)))
    hidden = _norm(reference, query + _linear(reference, torch.cat(mixed), "attention_output"), "attention_norm")
    activation = {"relu": F.relu, "gelu": F.gelu}[sizes.hidden_act]
    inner = _linear(reference, activation(_linear(reference, hidden, "up")), "down")
    return _norm(reference, hidden + inner, "feed_forward_norm")


def _linear(reference: Reference, row: torch.Tensor, name: str) -> torch.Tensor:
    weights = reference.decoder
    return weights[f"layer.{name}.weight"] @ row + weights[f"layer.{name}.bias"]


def _norm(reference: Reference, row: torch.Tensor, name: str) -> torch.Tensor:
    weights, centred = reference.decoder, row - row.mean()
    deviation = (centred.square().mean() + reference.config.model.encoder.layer_norm_eps).sqrt()
    return centred / deviation * weights[f"layer.{name}.weight"] + weights[f"layer.{name}.bias"]
