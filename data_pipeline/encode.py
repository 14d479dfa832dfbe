"""One text becomes token ids and the starts of its words. Legend: t tokens of the text, V vocabulary size."""

import os

import numpy as np
import numpy.typing as npt

from data_pipeline.segment import open_segmenter
from data_pipeline.shards import Ids
from data_pipeline.tokenizer import open_tokenizer, token_dtype, vocabulary_of
from data_pipeline.wordpiece import WordPiece
from data_pipeline.words import IDEOGRAPH, join_segments, starting_ids


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

    def word_starts(self, text: str, ids_t: Ids) -> npt.NDArray[np.bool_]:
        """bool[t]: which of the tokens `ids_t` of `text` start a word."""
        starts_t = self._starting_V[ids_t]
        if self._segment and not text.isascii() and IDEOGRAPH.search(text):
            join_segments(text, self._segment, self._wordpiece.word_positions(text), starts_t)
        return starts_t
