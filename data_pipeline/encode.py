"""A worker's share of a build: a unit of raw records becomes token ids, word starts and text hashes.

Legend: T tokens of the unit, D documents of the unit that have any.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline.dedup import digest
from data_pipeline.notes import Notes
from data_pipeline.segment import open_segmenter
from data_pipeline.shards import Ids
from data_pipeline.sources import Unit
from data_pipeline.texts import clean_texts
from data_pipeline.tokenizer import open_tokenizer, token_dtype, vocabulary_of
from data_pipeline.wordpiece import WordPiece
from data_pipeline.words import IDEOGRAPH, join_segments, starting_ids


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """The documents of a unit end to end, in the order of the input."""

    ids_T: Ids
    word_starts_T: npt.NDArray[np.bool_]
    lengths_D: list[int]  # tokens
    text_bytes_D: list[int]  # bytes of UTF-8 after cleaning
    digests_D: list[bytes]
    notes: Notes  # on records that gave no document, and why
    source: str
    read: int  # bytes of the input file


def make_encoder(tokenizer_json: str, word_segmenter: str, fast: bool) -> Callable[[Unit], EncodedUnit]:
    """The function a worker process applies to its units; made once in each process."""
    return _Encoder(tokenizer_json, word_segmenter, fast).encode


class _Encoder:
    """A tokenizer with what is derived from it once."""

    def __init__(self, tokenizer_json: str, word_segmenter: str, fast: bool) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        tokenizer = open_tokenizer(tokenizer_json)
        self._wordpiece = WordPiece(tokenizer, fast)
        vocabulary = vocabulary_of(tokenizer)
        self._starting_V = starting_ids(vocabulary, tokenizer.model.continuing_subword_prefix)
        self._dtype = token_dtype(len(vocabulary))
        self._segment = open_segmenter(word_segmenter)

    def encode(self, unit: Unit) -> EncodedUnit:
        """Parse, clean, hash and tokenize the records of `unit`; what gives no token is counted by reason."""
        texts, notes = clean_texts(unit)
        ids_D = [self._wordpiece.ids(text).astype(self._dtype) for text in texts]
        kept = [index for index, ids_t in enumerate(ids_D) if ids_t.size]
        if len(kept) < len(texts):
            notes.dropped["no tokens"] += len(texts) - len(kept)
        return EncodedUnit(
            ids_T=_joined([ids_D[index] for index in kept], self._dtype),
            word_starts_T=_joined([self._word_starts(texts[index], ids_D[index]) for index in kept], np.bool_),
            lengths_D=[ids_D[index].size for index in kept],
            text_bytes_D=[len(texts[index].encode()) for index in kept],
            digests_D=[digest(texts[index]) for index in kept],
            notes=notes,
            source=unit.input.source,
            read=unit.read,
        )

    def _word_starts(self, text: str, ids_t: Ids) -> npt.NDArray[np.bool_]:
        starts_t = self._starting_V[ids_t]
        if self._segment and not text.isascii() and IDEOGRAPH.search(text):
            join_segments(text, self._segment, self._wordpiece.word_positions(text), starts_t)
        return starts_t


def _joined(arrays: list[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])
