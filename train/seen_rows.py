"""What the encoder sees of a row, in words: documents, and below each what the objective hides of it.

Legend: T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import singledispatch
from itertools import pairwise
from typing import Any

import torch

from data_pipeline.checks.inspect import words_line
from data_pipeline.manifest import Manifest
from data_pipeline.tokenizer import load_tokenizer
from train.config import Config
from train.data.batch import Batch
from train.errors import DataError
from train.objectives import build_objective
from train.objectives.joint import Both
from train.objectives.mae import Dropped
from train.objectives.mlm import Masked
from train.objectives.objective import Objective
from train.objectives.retromae import Compressed
from train.objectives.span_corruption import Noise
from train.vocabulary import Vocabulary

LEGEND = (
    "Below each document, what the encoder sees of it in epoch 0: [MASK] hides a target, {x} is a target behind the "
    "random token x, (x) a target left as it is, _ a token or state that is dropped, <n> a noise span."
)
Shown = list[str | None]  # of each token; None: nothing is seen of it


def token_names(manifest: Manifest) -> list[str]:
    """The vocabulary by id. Raises DataError where the tokenizer is not that of the shards."""
    vocabulary = load_tokenizer(manifest.tokenizer_folder).vocabulary
    if len(vocabulary) != manifest.vocabulary_size:
        raise DataError(f"{manifest.tokenizer_folder}: {len(vocabulary)} tokens, not {manifest.vocabulary_size}")
    return vocabulary


def masking_only(config: Config, vocabulary: Vocabulary) -> Objective[Any]:
    """The objective without memory for its weights: it can choose, but not predict."""
    with torch.device("meta"):
        return build_objective(config, vocabulary)


def row_lines(batch: Batch, objective: Objective[Any], names_V: Sequence[str]) -> Iterator[str]:
    """Two lines for each document of a batch that has word starts: its words, pieces joined by a mark, and what is seen
    of it at step 0."""
    if batch.word_starts_T is None:
        raise ValueError("the batch was read without word starts")
    moved = batch.to("cpu")
    tokens_T, starts_T = [names_V[i] for i in moved.ids_T.tolist()], batch.word_starts_T.tolist()
    shown_T = shown(objective.select(moved, 0), moved, names_V)
    for start, end in pairwise(batch.cu_seqlens_D1.tolist()):
        yield f"  {words_line(tokens_T[start:end], starts_T[start:end])}"
        pairs = zip(shown_T[start:end], starts_T[start:end], strict=True)
        left = [(token, first) for token, first in pairs if token is not None]
        yield f"    seen: {words_line([token for token, _ in left], [first for _, first in left])}"


@singledispatch
def shown(selection: object, batch: Batch, names_V: Sequence[str]) -> Shown:
    """Each token of a batch as the encoder sees it."""
    raise TypeError(f"no way to show {type(selection).__name__}")


@shown.register(Masked)
@shown.register(Compressed)
def _(selection: Masked | Compressed, batch: Batch, names_V: Sequence[str]) -> Shown:
    return _corrupted(batch, selection.seen_T, selection.targets.flags_T, names_V)


@shown.register
def _(selection: Dropped, batch: Batch, names_V: Sequence[str]) -> Shown:
    flags_T = selection.chosen.flags_T.tolist()
    return ["_" if flag else names_V[i] for i, flag in zip(batch.ids_T.tolist(), flags_T, strict=True)]


@shown.register
def _(selection: Both, batch: Batch, names_V: Sequence[str]) -> Shown:
    masked_T = _corrupted(batch, selection.seen_T, selection.masked.flags_T, names_V)
    return ["_" if flag else token for token, flag in zip(masked_T, selection.dropped.flags_T.tolist(), strict=True)]


@shown.register
def _(selection: Noise, batch: Batch, names_V: Sequence[str]) -> Shown:
    spans_T = selection.first_T.long().cumsum(0)
    number_T = (spans_T - spans_T[selection.documents.starts_T] - 1).tolist()
    flags = zip(selection.noise_T.tolist(), selection.first_T.tolist(), strict=True)
    tokens = [f"<{n}>" if first else None if noise else "" for (noise, first), n in zip(flags, number_T, strict=True)]
    return [names_V[i] if token == "" else token for i, token in zip(batch.ids_T.tolist(), tokens, strict=True)]


def _corrupted(batch: Batch, seen_T: torch.Tensor, targets_T: torch.Tensor, names_V: Sequence[str]) -> Shown:
    triples = zip(batch.ids_T.tolist(), seen_T.tolist(), targets_T.tolist(), strict=True)
    return [_target(names_V[true], names_V[seen]) if target else names_V[true] for true, seen, target in triples]


def _target(true: str, seen: str) -> str:
    if seen in ("[MASK]", "<mask>"):
        return "[MASK]"
    return f"({seen})" if seen == true else f"{{{seen}}}"
