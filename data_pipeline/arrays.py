"""A worker's share of a build: a unit of raw records becomes arrays of token ids, word starts, hashes and counts.

Legend: T tokens of the unit, D documents of the unit that have any, P paragraphs of these documents (as many as
documents where paragraphs are not compared), B bands and S values of a sketch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from heapq import nsmallest
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_pipeline import contamination, language
from data_pipeline.dedup import near, paragraphs
from data_pipeline.encode import TextEncoder
from data_pipeline.held_out import digest
from data_pipeline.notes import SAMPLE, Example, Notes, excerpt
from data_pipeline.shards import Ids
from data_pipeline.sources import Unit
from data_pipeline.texts import Text, clean_texts
from data_pipeline.tokenizer import load_tokenizer

NO_TOKENS = "no tokens"
CONTAMINATED = "shares n-grams with evaluation files"

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a worker needs to know to encode: the same for all units of a build."""

    tokenizer_folder: Path
    word_segmenter: str
    fast: bool  # the exact fast road of wordpiece.py
    near: bool  # sketches for near duplicates are wanted
    paragraphs: bool  # hashes and lengths of paragraphs are wanted
    evaluation_grams: Path | None  # .npy: hashes that no document may have
    evaluation_words: int


@cache
def unit_encoder(encoding: Encoding) -> "UnitEncoder":
    """The encoder of this process for `encoding`, made once."""
    return UnitEncoder(encoding)


@cache
def _text_encoder(tokenizer_json: str, word_segmenter: str, fast: bool) -> TextEncoder:
    """Opened once in a process, as it takes some tenths of a second, for all data sets with this tokenizer."""
    return TextEncoder(tokenizer_json, word_segmenter, fast)


class UnitEncoder:
    """A tokenizer with what is derived from it once."""

    def __init__(self, encoding: Encoding) -> None:
        """Opens the tokenizer. Raises what `load_tokenizer` raises."""
        tokenizer_json = load_tokenizer(encoding.tokenizer_folder).tokenizer_json
        self._encoding = encoding
        self._text = _text_encoder(tokenizer_json, encoding.word_segmenter, encoding.fast)
        grams = encoding.evaluation_grams
        self._grams = None if grams is None else contamination.lookup(np.load(grams))

    def encode(self, unit: Unit) -> tuple[Arrays, Notes]:
        """Parse, clean, hash and tokenize the records of `unit`; what gives no token is counted by reason.

        The arrays are those of staging.py without `input_D`.
        """
        found, notes = clean_texts(unit)
        texts: list[Text] = []
        parts: list[list[str]] = []
        ids: list[list[Ids]] = []
        for text in self._uncontaminated(found, unit, notes):
            parts_p = paragraphs.split(text.text) if self._encoding.paragraphs else [text.text]
            ids_p = [self._text.ids(part) for part in parts_p]
            if any(ids_t.size for ids_t in ids_p):
                texts.append(text)
                parts.append(parts_p)
                ids.append(ids_p)
            else:
                notes.dropped[NO_TOKENS] += 1
        return self._arrays(texts, parts, ids, notes), notes

    def nothing(self) -> Arrays:
        """The arrays of no documents."""
        return self._arrays([], [], [], Notes())

    def _arrays(
        self, texts: Sequence[Text], parts: Sequence[Sequence[str]], ids: Sequence[Sequence[Ids]], notes: Notes
    ) -> Arrays:
        """The arrays of `texts`, given their paragraphs and the ids of these; `notes` counts their languages."""
        digests = [digest(text) for _, text in texts]
        notes.draw(_sample(texts, digests))
        arrays: Arrays = {
            "digest_D2": np.frombuffer(b"".join(digests), ">u8").reshape(-1, 2).astype(np.uint64),
            "line_D": np.array([line for line, _ in texts], np.uint64),
            "paragraphs_D": np.array([len(parts_p) for parts_p in parts], np.uint32),
        }
        arrays |= self._paragraphs(list(chain.from_iterable(parts)), list(chain.from_iterable(ids)))
        return arrays | (_sketches([text for _, text in texts]) if self._encoding.near else {})

    def _uncontaminated(self, texts: list[Text], unit: Unit, notes: Notes) -> list[Text]:
        """`texts` without those that share n-grams with evaluation files, which are counted."""
        if self._grams is None:
            return texts
        kept: list[Text] = []
        shared_D = contamination.shared_grams([text for _, text in texts], self._grams, self._encoding.evaluation_words)
        for found, shared in zip(texts, shared_D, strict=True):
            if shared:
                example = Example(unit.input.source, unit.input.name, found.line, excerpt(found.text), excerpt(shared))
                notes.add(notes.dropped, CONTAMINATED, example)
            else:
                kept.append(found)
        return kept

    def _paragraphs(self, parts_P: Sequence[str], ids_P: Sequence[Ids]) -> Arrays:
        starts_P = self._text.word_starts(parts_P, ids_P)
        arrays: Arrays = {
            "ids_T": _joined(ids_P, self._text.dtype),
            "starts_T": _joined(starts_P, np.bool_),
            "tokens_P": np.array([ids_t.size for ids_t in ids_P], np.uint32),
            "bytes_P": np.array([len(part.encode()) for part in parts_P], np.uint32),
            "words_P": np.array([np.count_nonzero(starts_t) for starts_t in starts_P], np.uint32),
            "unknown_P": np.array([np.count_nonzero(ids_t == self._text.unknown_id) for ids_t in ids_P], np.uint32),
        }
        if self._encoding.paragraphs:
            arrays["paragraph_digest_P2"] = paragraphs.digests(parts_P)
        return arrays


def _sample(texts: Sequence[Text], digests: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """(hash, part of the text) of what may come into the sample; the first bytes decide about the validation split."""
    keys = [(digest_16[::-1].hex(), text) for (_, text), digest_16 in zip(texts, digests, strict=True)]
    return ((key, language.looked_at(text)) for key, text in nsmallest(SAMPLE, keys))


def _sketches(texts: Sequence[str]) -> Arrays:
    sketches = near.sketch(texts)
    return {"bands_BD": np.ascontiguousarray(sketches.bands_DB.T), "sketch_DS": sketches.sketch_DS}


def _joined(arrays: Sequence[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    return np.concatenate([np.empty(0, dtype), *arrays])
