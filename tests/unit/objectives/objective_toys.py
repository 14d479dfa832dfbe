"""Tiny vocabularies, configurations, documents and batches, made by hand.

Legend: T tokens, D documents, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from train.config import Config
from train.data.batch import Batch
from train.model.documents import Documents
from train.objectives import build_objective
from train.objectives.objective import Objective
from train.vocabulary import Vocabulary

PAD, UNK, CLS, SEP, MASK = 0, 1, 2, 3, 4
FIRST_ORDINARY, SIZE = 7, 61  # 5 and 6 stand for [unusedN]
VOCABULARY = Vocabulary(
    size=SIZE,
    special_ids={"pad": PAD, "unk": UNK, "cls": CLS, "sep": SEP, "mask": MASK},
    ordinary_ids=np.arange(FIRST_ORDINARY, SIZE),
    most_frequent_id=11,
    unigram_entropy=1.0,
)
SEED = 20240607
OBJECTIVES = ("mlm", "mae", "latent-mae", "joint")
# A filler, the shortest documents that have a target, long ones: together longer than the model has positions.
LENGTHS = (17, 2, 9, 3, 40, 4, 5, 23)


class Document(NamedTuple):
    """A document of a batch with its [CLS] and [SEP]; `row` and `offset` say where it stands in the run's data."""

    ids: list[int]
    row: int
    offset: int
    starts: list[bool] | None = None  # of words; None: every token is one


def tiny_config(
    name: str = "mlm", model: dict[str, Any] | None = None, dropout: float = 0.0, **settings: Any
) -> Config:
    """A model whose encoder and decoder differ in every size, without dropout unless asked for."""
    encoder = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
    encoder |= {"max_position_embeddings": 40, "hidden_dropout_prob": dropout, "initializer_range": 0.3}
    encoder |= {"hidden_act": "relu", "layer_norm_eps": 1e-4}
    decoder = {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 28}
    return Config.model_validate(
        {
            "run": {"seed": SEED},
            "data": {"path": "nowhere", "sequence_length": 40},
            "model": {"encoder": encoder, "decoder": decoder, "gradient_checkpointing": False} | (model or {}),
            "objective": {"name": name, **settings},
        }
    )


def tiny_objective(config: Config, seed: int = 0) -> Objective:
    """An objective in which no parameter has a value that hides a mistake (biases of 0, norms of 1)."""
    torch.manual_seed(seed)
    objective = build_objective(config, VOCABULARY)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return objective


def make_documents(lengths: Sequence[int], seed: int = 0) -> list[Document]:
    """Documents of random ordinary ids, some frequent; about three to a row, and a filler wherever a length is 2."""
    rng = np.random.default_rng(seed)
    documents, row, offset = [], 1000, 0
    for length in lengths:
        ids = np.where(rng.random(length - 2) < 0.3, 11, rng.integers(FIRST_ORDINARY, SIZE, length - 2)).tolist()
        if length == 2:
            documents.append(Document([CLS, SEP], -1, 0))
            continue
        if rng.random() < 1 / 3:
            row, offset = row + 1, 0
        starts = [True, True, *(rng.random(length - 3) < 0.6).tolist(), True]
        documents.append(Document([CLS, *ids, SEP], row, offset, starts))
        offset += length
    return documents


def as_batch(documents: Sequence[Document], epoch: int = 3) -> Batch:
    """The documents as the stream would hand them over."""
    lengths_D = np.array([len(document.ids) for document in documents], dtype=np.int64)
    ids_T = torch.tensor([token for document in documents for token in document.ids])
    return Batch(
        ids_T=ids_T,
        word_starts_T=torch.tensor([start for document in documents for start in word_starts(document)]),
        lengths_D=lengths_D,
        cu_seqlens_D1=torch.tensor([0, *np.cumsum(lengths_D).tolist()], dtype=torch.int32),
        row_ids_D=torch.tensor([document.row for document in documents]),
        row_offsets_D=torch.tensor([document.offset for document in documents]),
        epoch=epoch,
        tokens=sum(len(document.ids) for document in documents if document.row >= 0),
    )


def word_starts(document: Document) -> list[bool]:
    return document.starts or [True] * len(document.ids)


def run(objective: Objective, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and hits as training and validation ask for them."""
    return objective(batch, objective.select(batch))


class Seen(NamedTuple):
    """What the encoder was given for one document."""

    ids: list[int]
    positions: list[int]


def seen_by_encoder(objective: Objective, documents: Sequence[Document], epoch: int = 3) -> list[Seen]:
    """Per document, the ids and positions that the objective's encoder was called with."""
    calls: list[tuple[torch.Tensor, torch.Tensor, Documents]] = []
    handle = objective.encoder.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    with torch.no_grad():
        run(objective, as_batch(documents, epoch))
    handle.remove()
    [(ids_T, positions_T, bounds)] = calls
    lengths = bounds.lengths_D.tolist()
    pieces = zip(ids_T.split(lengths), positions_T.split(lengths), strict=True)
    return [Seen(ids.tolist(), positions.tolist()) for ids, positions in pieces]
