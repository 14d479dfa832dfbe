"""Texts become token ids and the starts of their words. Legend: P texts, t tokens of a text, V vocabulary size."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from data_pipeline.ideographs import IDEOGRAPH
from data_pipeline.segment import open_segmenter
from data_pipeline.shards import Ids
from data_pipeline.tokenizer import open_tokenizer, token_dtype, vocabulary_of
from data_pipeline.wordpiece import WordPiece
from data_pipeline.words import join_segments, starting_ids

_TOGETHER = 200_000  # characters that are segmented at once: what a call costs is spread over many

Starts = npt.NDArray[np.bool_]


class TextEncoder:
    """A tokenizer and a word segmenter with what is derived from them once."""

    def __init__(self, tokenizer_json: str, word_segmenter: str, fast: bool) -> None:
        """`fast`: take the exact fast road of wordpiece.py, which not every tokenizer and machine has."""
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        tokenizer = open_tokenizer(tokenizer_json)
        vocabulary = vocabulary_of(tokenizer)
        self._wordpiece = WordPiece(tokenizer, fast)
        self._starting_V = starting_ids(vocabulary, tokenizer.model.continuing_subword_prefix)
        self._segment = open_segmenter(word_segmenter)
        self.dtype = token_dtype(len(vocabulary))
        self.unknown_id = vocabulary.index(tokenizer.model.unk_token)

    def ids(self, text: str) -> Ids:
        """The token ids of `text`, ids_t."""
        return self._wordpiece.ids(text).astype(self.dtype)

    def word_starts(self, texts_P: Sequence[str], ids_P: Sequence[Ids]) -> list[Starts]:
        """For each of the texts with its ids bool[t]: which tokens start a word. Much faster than one by one."""
        starts_P = [self._starting_V[ids_t] for ids_t in ids_P]
        if self._segment:
            for some in _together(texts_P):
                starts_T = np.concatenate([starts_P[index] for index in some])
                texts = [texts_P[index] for index in some]
                join_segments("\n".join(texts), self._segment, self._wordpiece.word_positions(texts), starts_T)
                ends = np.cumsum([starts_P[index].size for index in some])
                for index, starts_t in zip(some, np.split(starts_T, ends[:-1]), strict=True):
                    starts_P[index] = starts_t
        return starts_P


def _together(texts_P: Sequence[str]) -> Iterator[list[int]]:
    """The numbers of the texts with ideographs, in groups of about _TOGETHER characters."""
    group, characters = list[int](), 0
    for index, text in enumerate(texts_P):
        if text.isascii() or not IDEOGRAPH.search(text):
            continue
        group.append(index)
        characters += len(text)
        if characters >= _TOGETHER:
            yield group
            group, characters = [], 0
    if group:
        yield group
