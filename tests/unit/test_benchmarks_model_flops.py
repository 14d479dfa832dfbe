"""The formulas by which benchmarks turn tokens a second into arithmetic."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from train.config import Config
from train.data.batch import Batch
from train.objectives import build_objective
from train.vocabulary import Vocabulary

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # at the end: it has a data_pipeline.py

from model_flops import _pairs, training_flops

SIZE = 4_999
VOCABULARY = Vocabulary(
    size=SIZE,
    special_ids={"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4},
    ordinary_ids=np.arange(5, SIZE),
    most_frequent_id=11,
    unigram_entropy=1.0,
)
POWERS = np.array([16, 128, 64, 256])  # a decoder of retromae pads to them


def make_config(name: str, family: str) -> Config:
    encoder = {"model_type": family, "hidden_size": 48, "num_hidden_layers": 4, "num_attention_heads": 3}
    encoder |= {"intermediate_size": 80, "max_position_embeddings": 256}
    if family == "modernbert":
        # The products of a window are computed in rectangles, which would count what is not seen: here it sees all.
        encoder["extra"] = {"local_attention": 512}
    decoder = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 56}
    return Config.model_validate(
        {
            "data": {"path": "unused", "sequence_length": 256},
            "model": {"encoder": encoder, "decoder": decoder, "gradient_checkpointing": False},
            "objective": {"name": name},
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


@pytest.mark.parametrize(
    ("name", "family"),
    [
        *((name, "bert") for name in ("mlm", "mae", "latent-mae", "joint", "retromae")),
        ("mlm", "modernbert"),
    ],
)
def test_flops_are_what_torch_counts(name: str, family: str) -> None:
    """Reference: torch's FlopCounterMode over forward and backward, attention as plain products; to 2 %."""
    torch.manual_seed(0)
    config, batch = make_config(name, family), make_batch(POWERS)
    objective = build_objective(config, VOCABULARY)
    selection = objective.select(batch)
    added = {torch.ops.aten.addmm_: lambda _, a, b, **__: 2 * a[0] * a[1] * b[1]}  # torch counts the others alone
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False, custom_mapping=added) as counter:
        losses_H, _ = objective(batch, selection)
        losses_H.sum().backward()
    assert training_flops(config, SIZE, POWERS) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_pairs_of_a_window_are_those_that_are_near() -> None:
    """Reference: every pair of places, one by one."""
    lengths_D = np.array([1, 4, 5, 6, 9, 40])
    slow = [sum(abs(i - j) < 5 for i in range(length) for j in range(length)) for length in lengths_D]
    assert _pairs(lengths_D, 5).tolist() == slow
    assert _pairs(lengths_D, None).tolist() == (lengths_D**2).tolist()
