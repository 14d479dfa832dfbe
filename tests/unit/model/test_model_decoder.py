"""The decoder: where states and mask vectors go, how positions turn them, and that nothing crosses a document's bounds.

Its arithmetic is compared with loops in the tests of the objectives.
"""

import cmath
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from train.config import Model
from train.model.decoder import Decoder, Rotation
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


def decode(
    decoder: Decoder,
    lengths: Sequence[int],
    kept: list[list[int]],
    states_KE: torch.Tensor,
    positions_T: torch.Tensor | None = None,
) -> torch.Tensor:
    documents = Documents.of(np.array(lengths), torch.device("cpu"))
    starts = np.cumsum(lengths) - lengths
    places = [int(start) + place for start, own in zip(starts, kept, strict=True) for place in own]
    return decoder(
        states_KE, torch.tensor(places), documents.positions_T if positions_T is None else positions_T, documents
    )


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


def test_what_stands_at_a_dropped_place_is_the_mask_vector(decoder: Decoder) -> None:
    """Reference: the input of the first layer, place by place; kept places hold the widened state instead."""
    kept = kept_places([8])
    [states] = random_states(kept)
    inputs: list[torch.Tensor] = []
    decoder.layers[0].register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    decode(decoder, [8], kept, states)
    for place in range(8):
        expected = decoder.widen(states[kept[0].index(place)]) if place in kept[0] else decoder.mask_vector
        torch.testing.assert_close(inputs[0][place], expected, atol=1e-6, rtol=1e-5)


def test_sizes_and_initial_values_are_the_configured_ones(model: Model) -> None:
    """Reference: the fields of the configuration; biases 0, norms 1, the rest normal, nothing learned per position."""
    torch.manual_seed(0)
    decoder = Decoder(model, 50)
    assert len(decoder.layers) == 2
    assert (decoder.layers[0].heads, decoder.layers[0].up.out_features) == (2, 28)
    assert decoder.mask_vector.shape == (16,) and decoder.bias.shape == (50,)
    assert decoder.head_width == 8
    names = {name.split(".")[0] for name, _ in decoder.named_parameters()}
    assert names == {"widen", "mask_vector", "layers", "norm", "to_embedding", "embedding_norm", "bias"}
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel() >= 384:
            assert 0.25 < parameter.std() < 0.35, name
        else:
            assert parameter.std() > 0.1, name


def test_sizes_that_are_not_set_are_the_encoders(model: Model) -> None:
    """Reference: the encoder's fields."""
    unset = Model.model_validate({"encoder": model.encoder.model_dump(), "decoder": {"num_hidden_layers": 1}})
    decoder = Decoder(unset, 50)
    assert (decoder.widen.out_features, decoder.layers[0].heads, decoder.layers[0].up.out_features) == (24, 3, 40)


# ---------------------------------------------------------------------------------------------------------------------
# Positions

POSITIONS = (0, 1, 2, 3, 31, 100, 511, 100, 4, 8191)


def slowly_rotated(x_THW: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
    """RoFormer, section 3.2, in double precision: one position, one head, one pair of channels at a time."""
    width = x_THW.shape[-1]
    turned = x_THW.double().clone()
    for row, position in enumerate(positions):
        for head in range(x_THW.shape[1]):
            for i in range(width // 2):
                pair = complex(x_THW[row, head, i], x_THW[row, head, i + width // 2])
                pair *= cmath.exp(1j * position * 10000 ** (-2 * i / width))
                turned[row, head, i], turned[row, head, i + width // 2] = pair.real, pair.imag
    return turned


def random_heads(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 3, width, generator=torch.Generator().manual_seed(seed))


def angle_error(position: int) -> float:
    """Radians: an angle in fp32 is off by a few units of its last place, 2^-24 of the position each."""
    return 1e-6 + position * 4 * 2**-24


@pytest.mark.parametrize("width", [2, 8, 64])
def test_a_rotation_multiplies_pairs_by_complex_numbers(width: int) -> None:
    """Reference: Python's complex numbers, one position and one pair of channels at a time."""
    x_THW = random_heads(len(POSITIONS), width)
    turned, expected = Rotation(torch.tensor(POSITIONS), width)(x_THW), slowly_rotated(x_THW, POSITIONS)
    assert turned.dtype == torch.float32
    for row, position in enumerate(POSITIONS):
        tolerance = float(x_THW[row].norm(dim=-1).max()) * angle_error(position)
        torch.testing.assert_close(turned[row].double(), expected[row], atol=tolerance, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_position_zero_is_the_identity(dtype: torch.dtype) -> None:
    """Reference: the input, bit for bit; another position changes every head."""
    x_THW = random_heads(4, 8).to(dtype)
    assert torch.equal(Rotation(torch.zeros(4, dtype=torch.int64), 8)(x_THW), x_THW)
    assert (Rotation(torch.ones(4, dtype=torch.int64), 8)(x_THW) != x_THW).any(-1).all()


def test_a_rotation_keeps_norms() -> None:
    """Reference: the norm of each pair of channels before it was turned."""
    x_THW = random_heads(len(POSITIONS), 8)
    before, after = (x.unflatten(-1, (2, 4)).norm(dim=-2) for x in (x_THW, Rotation(torch.tensor(POSITIONS), 8)(x_THW)))
    torch.testing.assert_close(after, before, atol=0, rtol=1e-6)


def test_scores_depend_on_distances_alone() -> None:
    """Reference: the scores of the same queries and keys with every position shifted by the same distance."""
    query_THW, key_THW = random_heads(6, 8), random_heads(6, 8, seed=1)
    positions_T = torch.tensor([0, 1, 2, 5, 9, 30])

    def scores(query_positions_T: torch.Tensor, key_positions_T: torch.Tensor) -> torch.Tensor:
        query, key = Rotation(query_positions_T, 8)(query_THW), Rotation(key_positions_T, 8)(key_THW)
        return torch.einsum("thw,shw->hts", query, key)

    before = scores(positions_T, positions_T)
    for shift in (1, 7, 100):
        torch.testing.assert_close(scores(positions_T + shift, positions_T + shift), before, atol=2e-5, rtol=0)
        assert (scores(positions_T + shift, positions_T) - before).abs().max() > 0.1


def test_a_shift_of_a_documents_positions_changes_nothing(decoder: Decoder) -> None:
    """Reference: the same documents at positions that begin at 0; positions at other distances do change the output."""
    kept = kept_places(LENGTHS)
    states_KE = torch.cat(random_states(kept))
    positions_T = torch.cat([torch.arange(length) for length in LENGTHS])
    shifts_T = torch.tensor([1, 40, 7, 0, 64]).repeat_interleave(torch.tensor(LENGTHS))
    before = decode(decoder, LENGTHS, kept, states_KE, positions_T)
    shifted = decode(decoder, LENGTHS, kept, states_KE, positions_T + shifts_T)
    torch.testing.assert_close(shifted, before, atol=1e-5, rtol=1e-5)
    stretched = decode(decoder, LENGTHS, kept, states_KE, 2 * positions_T)
    moved = (stretched - before).detach().abs().amax(-1).split(LENGTHS)
    assert min(float(document.max()) for document in moved) > 0.01


def test_angles_are_fp32_under_bf16_inputs() -> None:
    """Reference: complex numbers on the rounded inputs; angles in bf16 would be off by radians at these positions."""
    x_THW = random_heads(len(POSITIONS), 8).bfloat16()
    rotation = Rotation(torch.tensor(POSITIONS), 8)
    turned, expected = rotation(x_THW), slowly_rotated(x_THW, POSITIONS)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, rotation(x_THW.float()).bfloat16())
    for row, position in enumerate(POSITIONS):
        tolerance = float(x_THW[row].float().norm(dim=-1).max()) * angle_error(position)
        torch.testing.assert_close(turned[row].double(), expected[row], atol=tolerance, rtol=2**-8)


def test_a_decoder_in_bf16_tells_far_neighbours_apart(decoder: Decoder) -> None:
    """Reference: the same rounded weights in fp32. In bf16, 500 and 501 would be one position."""
    kept, far_T = kept_places([32]), torch.arange(500, 532)
    [states_KE] = random_states(kept)
    decoder.bfloat16()
    half = decode(decoder, [32], kept, states_KE.bfloat16(), far_T)
    decoder.float()
    whole = decode(decoder, [32], kept, states_KE.bfloat16().float(), far_T)
    assert (half.float() - whole).norm() < 0.03 * whole.norm()
