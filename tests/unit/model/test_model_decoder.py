"""The decoder: where states and mask vectors go, and that nothing crosses a document's bounds.

Its arithmetic is compared with loops in the tests of the objectives.
"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from train.config import Model
from train.model.decoder import Decoder
from train.model.documents import Documents

LENGTHS = (17, 2, 32, 3, 21)


@pytest.fixture
def decoder(model: Model) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(model, 50)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return decoder


def kept_places(lengths: Sequence[int]) -> list[list[int]]:
    """First, last and every third place of each document."""
    return [sorted({0, length - 1, *range(0, length, 3)}) for length in lengths]


def decode(decoder: Decoder, lengths: Sequence[int], kept: list[list[int]], states_KE: torch.Tensor) -> torch.Tensor:
    documents = Documents.of(np.array(lengths), torch.device("cpu"))
    starts = np.cumsum(lengths) - lengths
    places = [int(start) + place for start, own in zip(starts, kept, strict=True) for place in own]
    return decoder(states_KE, torch.tensor(places), documents.positions_T, documents)


def random_states(kept: list[list[int]], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(len(own), 24, generator=generator) for own in kept]


def test_a_packed_document_equals_the_document_alone_bit_for_bit(decoder: Decoder) -> None:
    """Reference: each document as a batch of its own; MKL has other kernels for a handful of rows."""
    kept = kept_places(LENGTHS)
    states = random_states(kept)
    packed = decode(decoder, LENGTHS, kept, torch.cat(states)).split(LENGTHS)
    for number, length in enumerate(LENGTHS):
        alone = decode(decoder, [length], [kept[number]], states[number])
        torch.testing.assert_close(packed[number], alone, atol=1e-5, rtol=1e-5)
        if len(kept[number]) >= 7 and torch.backends.mkl.is_available():
            assert torch.equal(packed[number], alone)


def test_a_neighbours_states_change_no_bit(decoder: Decoder) -> None:
    """Reference: the batch before one document's states were replaced."""
    kept = kept_places(LENGTHS)
    states, replaced = random_states(kept), random_states(kept, seed=1)
    before = decode(decoder, LENGTHS, kept, torch.cat(states)).split(LENGTHS)
    for number in range(len(LENGTHS)):
        changed_states = torch.cat([*states[:number], replaced[number], *states[number + 1 :]])
        after = decode(decoder, LENGTHS, kept, changed_states).split(LENGTHS)
        changed = [not torch.equal(left, right) for left, right in zip(before, after, strict=True)]
        assert changed == [other == number for other in range(len(LENGTHS))]


def test_what_stands_at_a_dropped_place_is_the_mask_vector_and_its_position(decoder: Decoder) -> None:
    """Reference: the input of the first layer, place by place; kept places hold the widened state instead."""
    kept = kept_places([8])
    [states] = random_states(kept)
    inputs: list[torch.Tensor] = []
    decoder.layers[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    decode(decoder, [8], kept, states)
    for place in range(8):
        content = decoder.widen(states[kept[0].index(place)]) if place in kept[0] else decoder.mask_vector
        expected = content + decoder.positions.weight[place]
        torch.testing.assert_close(inputs[0][place], expected, atol=1e-6, rtol=1e-5)


def test_sizes_and_initial_values_are_the_configured_ones(model: Model) -> None:
    """Reference: the fields of the configuration; biases 0, norms 1, all but the positions normal."""
    torch.manual_seed(0)
    decoder = Decoder(model, 50)
    assert len(decoder.layers) == 2
    assert (decoder.layers[0].heads, decoder.layers[0].up.out_features) == (2, 28)
    assert decoder.mask_vector.shape == (16,) and decoder.bias.shape == (50,)
    assert decoder.positions.weight.shape == (32, 16)
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif name == "positions.weight":
            continue
        elif parameter.numel() >= 384:
            assert 0.25 < parameter.std() < 0.35, name
        else:
            assert parameter.std() > 0.1, name


def test_positions_start_as_sines_and_cosines(model: Model) -> None:
    """Reference: Vaswani et al. 2017, section 3.5, one number at a time."""
    weight = Decoder(model, 50).positions.weight.detach()
    for position in range(32):
        for channel in range(16):
            wave = math.cos if channel % 2 else math.sin
            expected = wave(position / 10000 ** (channel // 2 * 2 / 16))
            assert float(weight[position, channel]) == pytest.approx(expected, abs=1e-5)


def test_sizes_that_are_not_set_are_the_encoders(model: Model) -> None:
    """Reference: the encoder's fields."""
    unset = Model.model_validate({"encoder": model.encoder.model_dump(), "decoder": {"num_hidden_layers": 1}})
    decoder = Decoder(unset, 50)
    assert (decoder.widen.out_features, decoder.layers[0].heads, decoder.layers[0].up.out_features) == (24, 3, 40)
