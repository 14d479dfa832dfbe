"""What the report of the data shows of a row is what the encoder is given."""

import pytest
import torch
from objective_toys import CLS, LENGTHS, MASK, SEP, VOCABULARY, as_batch, make_documents, seen_by_encoder, tiny_config

from train.objectives import build_objective
from train.seen_rows import masking_only, row_lines, shown

NAMES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(5, VOCABULARY.size))]
UNITS = pytest.mark.parametrize("unit", ["token", "word", "span"])
RATIOS = {"mask_ratio": 0.3, "drop_ratio": 0.4, "mask_token_share": 0.5, "random_token_share": 0.3}


@UNITS
@pytest.mark.parametrize("name", ["mlm", "mae", "joint", "retromae"])
def test_shown_tokens_are_those_that_the_encoder_gets(name: str, unit: str) -> None:
    """Reference: the ids and positions with which the encoder of a real model is called."""
    config = tiny_config(name, mask_unit=unit, drop_unit=unit, **RATIOS)
    documents = make_documents(LENGTHS)
    seen = seen_by_encoder(build_objective(config, VOCABULARY), documents)
    batch, objective = as_batch(documents), masking_only(config, VOCABULARY)
    tokens = shown(objective.select(batch), batch, NAMES)
    place, marked = 0, set()
    for document, piece in zip(documents, seen, strict=True):
        own = tokens[place : place + len(document.ids)]
        assert [position for position, word in enumerate(own) if word != "_"] == piece.positions
        assert [word.strip("(){}") for word in own if word != "_"] == [NAMES[i] for i in piece.ids]
        for position, number in zip(piece.positions, piece.ids, strict=True):
            changed = number not in (document.ids[position], MASK)
            assert (own[position][0] == "{") == changed
            marked.add(own[position][0])
        place += len(document.ids)
    assert {"[", "w"} <= marked
    assert name == "mae" or {"{", "("} <= marked


def test_noise_spans_are_numbered_from_0_in_every_document() -> None:
    """Reference: the kept tokens in order, and a number for every run of noise."""
    config, documents = tiny_config("span-corruption", mask_ratio=0.3), make_documents(LENGTHS)
    batch, objective = as_batch(documents), masking_only(config, VOCABULARY)
    selection = objective.select(batch)
    tokens, noise = shown(selection, batch, NAMES), selection.noise_T.tolist()
    place = 0
    for document in documents:
        spans, previous = 0, False
        for number in document.ids:
            expected = f"<{spans}>" if noise[place] and not previous else None if noise[place] else NAMES[number]
            assert tokens[place] == expected
            spans += noise[place] and not previous
            previous, place = noise[place], place + 1
    assert any(noise)


def test_a_document_has_two_lines_and_the_weights_take_no_memory() -> None:
    """Reference: the document of one word of two pieces; parameters lie on torch's meta device."""
    [document] = make_documents([4])
    document = document._replace(ids=[CLS, 9, 10, SEP], starts=[True, True, False, True])
    objective = masking_only(tiny_config("latent-mae", drop_ratio=0.9), VOCABULARY)
    first, second = row_lines(as_batch([document]), objective, NAMES)
    assert first == "  [CLS] w9·w10 [SEP]"
    assert second == "    seen: [CLS] _·_ [SEP]"
    assert all(parameter.device == torch.device("meta") for parameter in objective.parameters())
