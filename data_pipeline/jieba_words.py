"""Where the words of jieba begin: those of rjieba, which is asked only for what was not met before.

jieba takes the most probable path over the words of its dictionary; words of one character that stand side by side then
go through a hidden Markov model. A path has a word's end between neighbours that no word of the dictionary has side by
side. There text falls into pieces, most of two characters and met before; the path of each is a part of the whole one.
Legend: C characters of the text, V characters of the dictionary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UserError
from data_pipeline.ideographs import ideographs
from data_pipeline.remembered import Pieces, Positions, mark_words, new_memory

# Of a hash of neighbours. What collides is taken for neighbours in a word, which costs time and changes nothing.
_HASH_BITS = 23
_FACTORS = np.array([0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35], np.uint32)
_APART, _INSIDE, _WORD = range(3)  # two neighbours are in no word, in longer words only, one word themselves
_TAKEN = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+#&._%-"  # by jieba with ideographs
_ELSE, _TAKEN_ALONG, _IDEOGRAPH, _RARE_IDEOGRAPH = range(4)  # rare: those that the model does not know

Codes = npt.NDArray[np.uint32]
Kinds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Neighbours:
    """By hash: how two characters stand in the words of the dictionary, whether three stand side by side in one."""

    pairs: npt.NDArray[np.uint8]
    triples: npt.NDArray[np.bool_]


def open_jieba() -> Callable[[str], npt.NDArray[np.bool_]]:
    """A function of a text: bool[C], whether a word of jieba begins at each character.

    Raises UserError when rjieba is not installed, or jieba, whose dictionary is read.
    """
    try:
        import rjieba

        neighbours = _neighbours(_dictionary())
    except (ImportError, PackageNotFoundError) as error:
        raise UserError(
            "--word-segmenter jieba: needs the packages rjieba and jieba; install them, or give none"
        ) from error
    by_dictionary, by_model = (new_memory(partial(rjieba.cut, hmm=model)) for model in (False, True))

    def begins(text: str) -> npt.NDArray[np.bool_]:
        codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        kinds_C = _kinds()[codes_C]
        begins_C = np.ones(codes_C.size, np.bool_)
        ideograph_C = kinds_C >= _IDEOGRAPH
        possible = _with_any(ideograph_C, *_possible_words(codes_C, neighbours))
        mark_words(begins_C, Pieces(text, codes_C, *possible), by_dictionary)
        # A single ideograph among others is left single, but for the rare ones.
        undecided_C = kinds_C == _RARE_IDEOGRAPH
        undecided_C[1:] |= ideograph_C[1:] & ideograph_C[:-1]
        left_over = _with_any(undecided_C, *_single_characters(kinds_C, begins_C))
        mark_words(begins_C, Pieces(text, codes_C, *left_over), by_model)
        return begins_C

    return begins


def _possible_words(codes_C: Codes, neighbours: _Neighbours) -> tuple[Positions, Positions]:
    """Starts and ends of the longest pieces inside which a path may have no word's end."""
    inside = neighbours.pairs[_hash(codes_C[:-1], codes_C[1:])]
    unsure = np.flatnonzero(inside == _INSIDE)
    padded = np.zeros(codes_C.size + 2, np.uint32)
    padded[1:-1] = codes_C
    before, first, second, after = (padded[unsure + shift] for shift in range(4))
    inside[unsure] = neighbours.triples[_hash(before, first, second)] | neighbours.triples[_hash(first, second, after)]
    return _stretches(inside.astype(np.bool_), 1)


def _single_characters(kinds_C: Kinds, begins_C: npt.NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Starts and ends of what jieba takes together and has single characters only."""
    single_C = (kinds_C != _ELSE) & begins_C
    single_C[:-1] &= begins_C[1:]
    return _stretches(single_C, 0)


def _with_any(wanted_C: npt.NDArray[np.bool_], starts: Positions, ends: Positions) -> tuple[Positions, Positions]:
    """Of these those with more than one character and a wanted one."""
    before_C1 = np.zeros(wanted_C.size + 1, np.int32)  # wanted ones before each character, and in all
    np.cumsum(wanted_C, out=before_C1[1:])
    chosen = (ends - starts > 1) & (before_C1[ends] > before_C1[starts])
    return starts[chosen], ends[chosen]


def _stretches(true: npt.NDArray[np.bool_], more: int) -> tuple[Positions, Positions]:
    """Starts and ends of the stretches of True, the ends moved by `more`."""
    padded = np.zeros(true.size + 2, np.bool_)
    padded[1:-1] = true
    edges = np.flatnonzero(padded[1:] != padded[:-1])
    return edges[::2], edges[1::2] + more


def _hash(*codes: Codes) -> Codes:
    """Of characters side by side; columns of equal length."""
    mixed: Codes = sum(column * factor for column, factor in zip(codes, _FACTORS, strict=False))
    return mixed >> np.uint32(32 - _HASH_BITS)


def _neighbours(dictionary: str) -> _Neighbours:
    """Of a dictionary with lines of word, frequency and kind."""
    codes_V = np.frombuffer(dictionary.encode("utf-32-le"), np.uint32)
    ends = np.flatnonzero(codes_V == ord(" "))[::2]
    starts = np.concatenate([[0], np.flatnonzero(codes_V == ord("\n")) + 1])[: ends.size]
    lengths = ends - starts
    neighbours = _Neighbours(np.zeros(1 << _HASH_BITS, np.uint8), np.zeros(1 << _HASH_BITS, np.bool_))
    for length in range(int(lengths.max()), 1, -1):  # so that what is a word itself is written last
        for first in starts[lengths == length] + np.arange(length - 1)[:, None]:
            neighbours.pairs[_hash(codes_V[first], codes_V[first + 1])] = _INSIDE if length > 2 else _WORD
        for first in starts[lengths == length] + np.arange(length - 2)[:, None]:
            neighbours.triples[_hash(codes_V[first], codes_V[first + 1], codes_V[first + 2])] = True
    return neighbours


def _dictionary() -> str:
    """That of the package jieba, which is not imported."""
    return Path(str(distribution("jieba").locate_file("jieba/dict.txt"))).read_text(encoding="utf-8")


@cache
def _kinds() -> Kinds:
    """uint8[0x110000]: the kind of every character."""
    kinds = np.where(ideographs(), np.uint8(_RARE_IDEOGRAPH), np.uint8(_ELSE))
    kinds[0x4E00:0x9FD6] = _IDEOGRAPH
    kinds[[ord(character) for character in _TAKEN]] = _TAKEN_ALONG
    return kinds
