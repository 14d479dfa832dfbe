"""WordPiece ids that equal those of `tokenizers`, by tokie wherever that is proven, and where words begin in the text.

Text is cut at ASCII white space, across which nothing of BERT's tokenization reaches. Pieces of proven characters alone
go to tokie; what stands around any other character goes to `tokenizers`. Legend: T tokens, W words (of the
pre-tokenizer: each has one token without the prefix "##"), P pieces.
"""

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from data_pipeline.characters import UNPROVEN, classes, first_characters

PROVEN_TOKIE = "0.1.4"
_MAX_WORD = 100  # characters; what is longer is [UNK]
# Tokie starts a thread for every core when it gets more than 64 KiB: these characters fit in any script.
_PIECE_CHARACTERS = 10_000
_SPACE = re.compile("[ \n]")

Numbers = npt.NDArray[Any]
_Flat = Callable[[str], Numbers]


@dataclass(frozen=True, slots=True)
class _Piece:
    """text[start:end]; the classes of its characters when all are proven."""

    start: int
    end: int
    classes_C: npt.NDArray[np.uint8] | None


class WordPiece:
    """A tokenizer, with tokie at its side or not."""

    def __init__(self, tokenizer: Tokenizer, fast: bool) -> None:
        """`tokenizer` takes text as text (see open_tokenizer); `fast` needs that `why_slow` finds nothing."""
        self._tokenizer = tokenizer
        self._prefix: str = tokenizer.model.continuing_subword_prefix
        settings = json.loads(tokenizer.to_str())
        self._is_bert = _is_bert(settings)
        self._fast = _open_tokie(tokenizer.to_str()) if fast else None

    def ids(self, text: str) -> Numbers:
        """Ids of `text`, [T], without [CLS] and [SEP]."""
        if self._fast is None:
            return _exact_ids(self._tokenizer, text)
        ids_PT = [
            _exact_ids(self._tokenizer, text[piece.start : piece.end])
            if piece.classes_C is None
            else self._fast(text[piece.start : piece.end])
            for piece in self._pieces(text, _PIECE_CHARACTERS)
        ]
        return np.concatenate(ids_PT) if ids_PT else np.empty(0, np.uint32)

    def word_positions(self, texts: Sequence[str]) -> npt.NDArray[np.intp]:
        """Position in the lines that `texts` are together of the first character of each word, [W]."""
        if self._is_bert:  # for which a line feed is white space
            return self._positions("\n".join(texts))
        lengths = [len(text) + 1 for text in texts]
        firsts = [0, *accumulate(lengths)]
        parts = [first + self._positions(text) for first, text in zip(firsts, texts, strict=False)]
        return np.concatenate([np.empty(0, np.intp), *parts])

    def _positions(self, text: str) -> npt.NDArray[np.intp]:
        positions_PW = [
            piece.start
            + (
                self._exact_positions(text[piece.start : piece.end])
                if piece.classes_C is None
                else first_characters(piece.classes_C)
            )
            for piece in self._pieces(text, len(text))
        ]
        return np.concatenate([np.empty(0, np.intp), *positions_PW])

    def _exact_positions(self, text: str) -> npt.NDArray[np.intp]:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        return np.array([start for token, (start, _) in pairs if not token.startswith(self._prefix)], np.intp)

    def _pieces(self, text: str, characters: int) -> Iterator[_Piece]:
        return _guarded(text, characters) if self._is_bert else iter([_Piece(0, len(text), None)])


def why_slow(tokenizer: Tokenizer) -> str:
    """Why tokie cannot be used with this tokenizer; empty when it can. Takes some tenths of a second."""
    try:
        installed = version("tokie")
    except PackageNotFoundError:
        return f"tokie is not installed (pip install tokie=={PROVEN_TOKIE})"
    if installed != PROVEN_TOKIE:
        return f"tokie {installed} is not {PROVEN_TOKIE}, whose ids are proven"
    settings = json.loads(tokenizer.to_str())
    if not _is_bert(settings) or not _is_proven(settings):
        return "the tokenizer is not of BERT's kind"
    if not _agree(tokenizer, _open_tokie(tokenizer.to_str()), settings["model"]["vocab"]):
        return "tokie and tokenizers differ on this vocabulary"
    return ""


def _guarded(text: str, characters: int) -> Iterator[_Piece]:
    for start, end in _cuts(text, characters):
        classes_C = classes(text[start:end])
        if classes_C.all():
            yield _Piece(start, end, classes_C)
        else:
            yield from _around_unproven(text, start, end, classes_C)


def _cuts(text: str, characters: int) -> Iterator[tuple[int, int]]:
    """Bounds of pieces of about so many characters; one without white space stays whole."""
    start = 0
    while len(text) - start > characters:
        limit = start + characters
        end = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
        if end < 0:
            space = _SPACE.search(text, limit)
            end = space.start() if space else len(text)
        yield start, end
        start = end
    if start < len(text):
        yield start, len(text)


def _around_unproven(text: str, start: int, end: int, classes_C: npt.NDArray[np.uint8]) -> Iterator[_Piece]:
    """The stretches without white space around unproven characters, and what is between them."""
    done = start
    for position in (start + np.flatnonzero(classes_C == UNPROVEN)).tolist():
        if position < done:
            continue
        first = max(text.rfind(" ", done, position), text.rfind("\n", done, position), done)
        space = _SPACE.search(text, position, end)
        last = space.start() if space else end
        if first > done:
            yield _Piece(done, first, classes_C[done - start : first - start])
        yield _Piece(first, last, None)
        done = last
    if done < end:
        yield _Piece(done, end, classes_C[done - start :])


def _exact_ids(tokenizer: Tokenizer, text: str) -> Numbers:
    [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
    return np.array(encoding.ids, np.uint32)


def _is_bert(settings: dict[str, Any]) -> bool:
    """Whether white space and the classes of characters decide where words begin."""
    normalizer, pre_tokenizer = settings["normalizer"] or {}, settings["pre_tokenizer"] or {}
    return (
        normalizer.get("type") == "BertNormalizer"
        and normalizer["clean_text"]
        and normalizer["handle_chinese_chars"]
        and pre_tokenizer.get("type") == "BertPreTokenizer"
        # Others are found in the text before anything else.
        and all(token["special"] for token in settings["added_tokens"])
    )


def _is_proven(settings: dict[str, Any]) -> bool:
    """Whether the settings are among those that the tests compare."""
    normalizer, model = settings["normalizer"], settings["model"]
    return (
        normalizer["strip_accents"] in (None, normalizer["lowercase"])
        and model["continuing_subword_prefix"] == "##"
        and model["max_input_chars_per_word"] == _MAX_WORD
        and model["unk_token"] in model["vocab"]
    )


@lru_cache(maxsize=1)  # it is compared first and then used
def _open_tokie(tokenizer_json: str) -> _Flat:
    import tokie

    # With these, tokie takes a literal "[MASK]" for the special token.
    settings = json.loads(tokenizer_json) | {"added_tokens": [], "post_processor": None}
    with tempfile.TemporaryDirectory() as folder:  # it reads files only
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        tokenizer: Any = tokie.Tokenizer.from_json(str(path))  # its stub lacks encode_batch_flat

    def encode(text: str) -> Numbers:
        flat: Numbers = tokenizer.encode_batch_flat([text], add_special_tokens=False)[0]
        return flat

    return encode


def _agree(tokenizer: Tokenizer, encode: _Flat, vocabulary: Iterable[str]) -> bool:
    """Whether each token, where it stands in a word, gets the same ids of both."""
    text = " ".join("a" + token[2:] if token.startswith("##") else token for token in vocabulary)
    proven = (
        text[piece.start : piece.end] for piece in _guarded(text, _PIECE_CHARACTERS) if piece.classes_C is not None
    )
    return all(np.array_equal(_exact_ids(tokenizer, part), encode(part)) for part in proven)
