"""Small objectives and batches for a GPU: sizes that its kernels take, documents of all lengths.

Legend: T tokens, D documents.
"""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.objectives import build_objective
from train.objectives.objective import Objective
from train.objectives.readback import Readback
from train.vocabulary import Vocabulary

CLS, SEP, FIRST_ORDINARY, SIZE, LONGEST = 2, 3, 5, 997, 200
VOCABULARY = Vocabulary(
    size=SIZE,
    special_ids={"pad": 0, "unk": 1, "cls": CLS, "sep": SEP, "mask": 4},
    ordinary_ids=np.arange(FIRST_ORDINARY, SIZE),
    most_frequent_id=11,
    unigram_entropy=1.0,
)


def make_batch(seed: int = 0, documents: int = 60, longest: int = LONGEST) -> Batch:
    """Documents of random ids on the host, a few fillers among them; pinned where there is a GPU, as the stream's."""
    rng = np.random.default_rng(seed)
    lengths_D = rng.integers(3, longest + 1, documents)
    lengths_D[::17] = 2  # [CLS] [SEP]
    bounds_D1 = np.concatenate([[0], np.cumsum(lengths_D)])
    first_D, last_D, tokens = bounds_D1[:-1], bounds_D1[1:] - 1, int(bounds_D1[-1])
    ids_T = np.where(rng.random(tokens) < 0.3, 11, rng.integers(FIRST_ORDINARY, SIZE, tokens))
    ids_T[first_D], ids_T[last_D] = CLS, SEP
    starts_T = rng.random(tokens) < 0.6
    starts_T[first_D] = starts_T[first_D + 1] = starts_T[last_D] = True
    rows_D = np.where(lengths_D == 2, -1, 10**10 + np.arange(documents))
    return Batch(
        ids_T=_pinned(ids_T),
        word_starts_T=_pinned(starts_T),
        lengths_D=lengths_D,
        cu_seqlens_D1=_pinned(bounds_D1.astype(np.int32)),
        row_ids_D=_pinned(rows_D),
        row_offsets_D=_pinned(rng.integers(0, 300, documents)),
        epoch=3,
        tokens=tokens,
        rows=documents,
    )


def _pinned(array: np.ndarray) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def make_config(name: str, compile_layers: bool = False, **settings: Any) -> Config:
    """Two layers of BERT with heads of 16 channels, a decoder of other sizes, no dropout."""
    encoder = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
    encoder |= {"max_position_embeddings": LONGEST, "hidden_dropout_prob": 0.0, "initializer_range": 0.1}
    decoder = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 80}
    model = {"encoder": encoder, "decoder": decoder, "gradient_checkpointing": False, "compile": compile_layers}
    return Config.model_validate(
        {
            "run": {"seed": 5},
            "data": {"path": "unused", "sequence_length": LONGEST},
            "model": model,
            "objective": {"name": name, **settings},
        }
    )


def make_objective(config: Config, device: torch.device, dtype: torch.dtype = torch.float32) -> Objective[Any]:
    """Equal weights on every device: they are drawn on the host."""
    torch.manual_seed(0)
    return build_objective(config, VOCABULARY).to(device, dtype)


def mean_loss(objective: Objective[Any], batch: Batch, selection: Any) -> torch.Tensor:
    """All heads' means together, as training has them; the counts of targets must be on the host already."""
    counts_H = np.maximum(1, objective.target_counts(selection))
    scale_H = torch.from_numpy((np.array(objective.weights()) / counts_H).astype(np.float32))
    if torch.cuda.is_available():
        scale_H = scale_H.pin_memory()
    losses_H, _ = objective(batch, selection)
    return (losses_H * scale_H.to(losses_H.device, non_blocking=True)).sum()


def tensors(thing: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor and array inside nested records, on the host, by the path of its fields."""
    if isinstance(thing, torch.Tensor):
        yield name, thing.cpu()
    elif isinstance(thing, np.ndarray):
        yield name, torch.from_numpy(thing)
    elif isinstance(thing, Readback):
        yield name, torch.from_numpy(thing.array().copy())
    elif is_dataclass(thing):
        for field in fields(thing):
            yield from tensors(getattr(thing, field.name), f"{name}.{field.name}")
