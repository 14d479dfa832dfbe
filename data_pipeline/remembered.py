"""Where words begin in short pieces of texts, remembered for pieces met before.

Legend: C characters of the text, P pieces, K characters of all pieces one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SLOTS_BITS = 18  # 4 MiB for each memory
_LONGEST = 64  # characters of a piece that is remembered: one bit each
_SEPARATOR = "\n"  # words do not reach across it
_WEIGHTS = np.random.default_rng(0).integers(1, 1 << 63, _LONGEST, np.uint64) | np.uint64(1)

Cut = Callable[[str], list[str]]  # the words of a text in order; joined they are the text
Positions = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Memory:
    """What was cut, by a hash of 64 bits; of two pieces that want the same slot the last stays."""

    cut: Cut
    keys: npt.NDArray[np.uint64]
    bits: npt.NDArray[np.uint64]  # bit k: a word begins at character k of the piece


def new_memory(cut: Cut) -> Memory:
    """A memory of nothing; of each piece it says what `cut` says of the piece alone."""
    return Memory(cut, np.zeros(1 << _SLOTS_BITS, np.uint64), np.zeros(1 << _SLOTS_BITS, np.uint64))


def mark_words(
    begins_C: npt.NDArray[np.bool_],
    memory: Memory,
    text: str,
    codes_C: npt.NDArray[np.uint32],
    starts_P: Positions,
    ends_P: Positions,
) -> None:
    """Set `begins_C` inside the pieces text[start:end] to where their words begin; no piece is empty."""
    if not starts_P.size:
        return
    lengths_P = ends_P - starts_P
    if lengths_P.max() > _LONGEST:
        long_P = lengths_P > _LONGEST
        for start, end in zip(starts_P[long_P].tolist(), ends_P[long_P].tolist(), strict=True):
            begins_C[start:end] = _begins(memory.cut(text[start:end]))
        mark_words(begins_C, memory, text, codes_C, starts_P[~long_P], ends_P[~long_P])
        return
    firsts_P = np.cumsum(lengths_P) - lengths_P
    offsets_K = np.arange(firsts_P[-1] + lengths_P[-1]) - np.repeat(firsts_P, lengths_P)
    characters_K = offsets_K + np.repeat(starts_P, lengths_P)
    keys_P = np.add.reduceat(codes_C[characters_K] * _WEIGHTS[offsets_K], firsts_P)
    bits_P = _bits(memory, text, keys_P, starts_P, ends_P)
    begins_C[characters_K] = np.repeat(bits_P, lengths_P) >> offsets_K.astype(np.uint64) & np.uint64(1)


def _bits(
    memory: Memory, text: str, keys_P: npt.NDArray[np.uint64], starts_P: Positions, ends_P: Positions
) -> npt.NDArray[np.uint64]:
    slots_P = keys_P >> np.uint64(64 - _SLOTS_BITS)
    bits_P = memory.bits[slots_P]
    new_P = np.flatnonzero(memory.keys[slots_P] != keys_P)
    if new_P.size:
        _, first, again = np.unique(keys_P[new_P], return_index=True, return_inverse=True)
        different_P = new_P[first]
        pieces = zip(starts_P[different_P].tolist(), ends_P[different_P].tolist(), strict=True)
        bits_P[new_P] = _cut_pieces(memory.cut, [text[start:end] for start, end in pieces])[again]
        memory.keys[slots_P[new_P]], memory.bits[slots_P[new_P]] = keys_P[new_P], bits_P[new_P]
    return bits_P


def _cut_pieces(cut: Cut, pieces: list[str]) -> npt.NDArray[np.uint64]:
    """Where words begin in each of the pieces, as bits, from one call."""
    begins = _begins(cut(_SEPARATOR.join(pieces)))
    lengths_P = np.fromiter(map(len, pieces), np.intp, len(pieces)) + 1  # with the separator
    firsts_P = np.cumsum(lengths_P) - lengths_P
    begins[firsts_P] = True
    offsets = (np.arange(begins.size) - np.repeat(firsts_P, lengths_P)[: begins.size]).astype(np.uint64)
    bits = begins.astype(np.uint64) << np.minimum(offsets, np.uint64(_LONGEST - 1))
    bits[firsts_P[1:] - 1] = 0  # the separators
    return np.bitwise_or.reduceat(bits, firsts_P)


def _begins(words: list[str]) -> npt.NDArray[np.bool_]:
    """bool[C]: whether a word begins at each character of what `words` are when joined."""
    ends = np.cumsum(np.fromiter(map(len, words), np.intp, len(words)))
    begins = np.zeros(ends[-1] if ends.size else 0, np.bool_)
    begins[:1] = True
    begins[ends[:-1]] = True
    return begins
