"""A worker's share of a build: a unit of raw records becomes token ids, word starts and text hashes.

Legend: T tokens of the unit, D documents of the unit that have any.
"""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data_pipeline.dedup import digest
from data_pipeline.shards import Ids
from data_pipeline.sources import Unit
from data_pipeline.texts import clean_texts
from data_pipeline.tokenizer import open_tokenizer, token_dtype, vocabulary_of
from data_pipeline.words import starting_ids


@dataclass(frozen=True, slots=True)
class EncodedUnit:
    """The documents of a unit end to end, in the order of the input."""

    ids_T: Ids
    word_starts_T: npt.NDArray[np.bool_]
    lengths_D: list[int]  # tokens
    text_bytes_D: list[int]  # bytes of UTF-8 after cleaning
    digests_D: list[bytes]
    dropped: Counter[str]  # records without a document, by reason
    read: int  # bytes of the input file


def make_encoder(tokenizer_json: str, text_field: str) -> Callable[[Unit], EncodedUnit]:
    """The function a worker process applies to its units; made once in each process."""
    return _Encoder(tokenizer_json, text_field).encode


class _Encoder:
    """A tokenizer with what is derived from it once."""

    def __init__(self, tokenizer_json: str, text_field: str) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
        self._tokenizer: Tokenizer = open_tokenizer(tokenizer_json)
        vocabulary = vocabulary_of(self._tokenizer)
        self._starting_V = starting_ids(vocabulary, self._tokenizer.model.continuing_subword_prefix)
        self._dtype = token_dtype(len(vocabulary))
        self._text_field = text_field

    def encode(self, unit: Unit) -> EncodedUnit:
        """Parse, clean, hash and tokenize the records of `unit`; what gives no token is counted by reason."""
        texts, dropped = clean_texts(unit, self._text_field)
        ids_D = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        kept = [index for index, ids in enumerate(ids_D) if ids]
        dropped["no tokens"] += len(texts) - len(kept)
        lengths_D = [len(ids_D[index]) for index in kept]
        ids_T = np.fromiter(chain.from_iterable(ids_D), self._dtype, count=sum(lengths_D))
        return EncodedUnit(
            ids_T=ids_T,
            word_starts_T=self._starting_V[ids_T],
            lengths_D=lengths_D,
            text_bytes_D=[len(texts[index].encode()) for index in kept],
            digests_D=[digest(texts[index]) for index in kept],
            dropped=+dropped,
            read=unit.read,
        )
