"""The formulas that turn tokens a second into arithmetic."""

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.config import Config
from train.data.batch import Batch
from train.flops import _pairs, _windows, batch_flops, training_flops
from train.objectives import build_objective
from train.vocabulary import Vocabulary

SIZE = 4_999
VOCABULARY = Vocabulary(
    size=SIZE,
    special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(5, SIZE),
    most_frequent_id=11,
    unigram_entropy=1.0,
)
POWERS = np.array([16, 128, 64, 256])  # a decoder of retromae pads to them
FAMILIES = ("bert", "roberta", "xlm-roberta", "modernbert", "eurobert")
OBJECTIVES = ("mlm", "mae", "latent-mae", "joint", "retromae", "dupmae", "span-corruption")


def make_config(name: str, family: str, **changes: object) -> Config:
    # Grouped heads in groups of 2, and two groups of keys and values.
    encoder: dict[str, object] = {"model_type": family, "hidden_size": 48, "num_hidden_layers": 4}
    encoder |= {"num_attention_heads": 4, "intermediate_size": 80, "max_position_embeddings": 256}
    if family == "modernbert":
        # The products of a window are computed in rectangles, which would count what is not seen: here it sees all.
        encoder["extra"] = {"local_attention": 512}
    if family == "eurobert":
        encoder["extra"] = {"num_key_value_heads": 2}
    decoder = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 56}
    return Config.model_validate(
        {
            "data": {"path": "unused", "sequence_length": 256},
            "model": {"encoder": encoder, "decoder": decoder, "gradient_checkpointing": False},
            "objective": {"name": name, **changes},
        }
    )


def make_batch(lengths_D: np.ndarray) -> Batch:
    bounds_D1 = np.concatenate([[0], np.cumsum(lengths_D)])
    ids_T = np.random.default_rng(0).integers(5, SIZE, bounds_D1[-1])
    ids_T[bounds_D1[:-1]], ids_T[bounds_D1[1:] - 1] = 2, 3
    starts_T = np.ones(len(ids_T), bool)
    return Batch(
        ids_T=torch.from_numpy(ids_T),
        word_starts_T=torch.from_numpy(starts_T),
        lengths_D=lengths_D,
        cu_seqlens_D1=torch.from_numpy(bounds_D1.astype(np.int32)),
        row_ids_D=torch.arange(len(lengths_D)),
        row_offsets_D=torch.zeros(len(lengths_D), dtype=torch.int64),
        epoch=0,
        tokens=len(ids_T),
    )


def counted(config: Config) -> float:
    """torch's FlopCounterMode over forward and backward, attention as plain products."""
    torch.manual_seed(0)
    batch, objective = make_batch(POWERS), build_objective(config, VOCABULARY)
    selection = objective.select(batch)
    added = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # torch counts the others alone
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=added) as counter:
        losses_H, _ = objective(batch, selection)
        losses_H.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "bert") for name in OBJECTIVES),
        *(("joint", family) for family in FAMILIES[1:]),  # all parts of the other families' encoders and heads
        ("dupmae", "eurobert"),
        ("span-corruption", "eurobert"),
    ],
)
def test_flops_are_what_torch_counts(name: str, family: str) -> None:
    """Reference: torch's counter on the real modules; to 2 %."""
    config = make_config(name, family)
    assert training_flops(config, SIZE, POWERS) == pytest.approx(counted(config), rel=0.02)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "mlm", "boundary_weight": 1.0, "mask_ratio": 0.6},
        {"name": "latent-mae", "reconstruct": "all"},
        {"name": "joint", "drop_ratio": 0.3, "mask_ratio": 0.4},
        {"name": "span-corruption", "mask_ratio": 0.5},
        {"name": "retromae", "decoder_query": "embeddings"},
    ],
)
def test_flops_follow_the_settings_of_an_objective(changes: dict[str, object]) -> None:
    """Reference: torch's counter on the real modules; to 2 %."""
    config = make_config(family="bert", **changes)
    assert training_flops(config, SIZE, POWERS) == pytest.approx(counted(config), rel=0.02)


def test_flops_follow_the_mask_ratio_of_the_step() -> None:
    """Reference: the configuration that has the later ratio from the beginning."""
    later = make_config("mlm", "bert", mask_ratio=0.4)
    changing = make_config("mlm", "bert", mask_ratio=0.15, mask_ratio_at=[{"step": 10, "ratio": 0.4}])
    assert training_flops(changing, SIZE, POWERS, 10) == training_flops(later, SIZE, POWERS)
    assert training_flops(changing, SIZE, POWERS, 9) < training_flops(later, SIZE, POWERS)


def test_fillers_are_no_work() -> None:
    """Reference: the same batch without its filler."""
    config = make_config("mlm", "bert")
    whole, filled = make_batch(POWERS), make_batch(np.append(POWERS, 2))
    filled.row_ids_D[-1] = -1
    count = batch_flops(config, SIZE)
    assert count(filled, 0) == count(whole, 0) == round(training_flops(config, SIZE, POWERS))
    nothing = make_batch(np.array([2]))
    nothing.row_ids_D[:] = -1
    assert count(nothing, 0) == 0


def test_layers_of_modernbert_see_as_far_as_transformers_says() -> None:
    """Reference: the sliding windows of transformers' own modules, for the usual layers and for chosen ones."""
    for extra in (
        {"local_attention": 64, "global_attn_every_n_layers": 2},
        {"layer_types": ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]},
    ):
        config = make_config("mlm", "modernbert")
        encoder = config.model.encoder.model_copy(update={"extra": extra})
        config = config.model_copy(update={"model": config.model.model_copy(update={"encoder": encoder})})
        layers = build_objective(config, VOCABULARY).encoder.masked_lm.base_model.layers
        assert _windows(config) == [layer.attn.sliding_window for layer in layers]


def test_pairs_of_a_window_are_those_that_are_near() -> None:
    """Reference: every pair of places, one by one."""
    lengths_D = np.array([1, 4, 5, 6, 9, 40])
    slow = [sum(abs(i - j) < 5 for i in range(length) for j in range(length)) for length in lengths_D]
    assert _pairs(lengths_D, 5).tolist() == slow
    assert _pairs(lengths_D, None).tolist() == (lengths_D**2).tolist()
