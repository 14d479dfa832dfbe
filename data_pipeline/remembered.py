"""Where words begin inside short pieces of text, remembered for the pieces met before.

Legend: C characters of the text, P pieces, K characters of all pieces one after the other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

_SLOT_BITS = 18  # of the number of slots: 4 MiB for each memory
_LONGEST = 64  # characters of a piece that is remembered: a bit for each
_SEPARATOR = "\n"  # across which no word reaches
_WEIGHTS = np.random.default_rng(0).integers(1, 1 << 63, _LONGEST, np.uint64) | np.uint64(1)

Cut = Callable[[str], list[str]]  # the words of a text in order; joined they are the text
Positions = npt.NDArray[np.intp]
Bits = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Pieces:
    """text[start:end] for each; none is empty."""

    text: str
    codes_C: npt.NDArray[np.uint32]  # the characters of the text
    starts_P: Positions
    ends_P: Positions


@dataclass(frozen=True, slots=True)
class Memory:
    """What `cut` said, by hashes of 64 bits; of pieces that want the same slot the last one has it."""

    cut: Cut
    keys: Bits
    bits: Bits  # bit k: a word begins at character k of the piece


def new_memory(cut: Cut) -> Memory:
    """A memory of nothing. It decides no outcome: of a piece it says what `cut` says of that piece alone."""
    return Memory(cut, np.zeros(1 << _SLOT_BITS, np.uint64), np.zeros(1 << _SLOT_BITS, np.uint64))


def mark_words(begins_C: npt.NDArray[np.bool_], pieces: Pieces, memory: Memory) -> None:
    """Set `begins_C` inside the pieces to whether a word begins there; what is outside stays."""
    short_P = pieces.ends_P - pieces.starts_P <= _LONGEST
    for start, end in zip(pieces.starts_P[~short_P].tolist(), pieces.ends_P[~short_P].tolist(), strict=True):
        begins_C[start:end] = word_begins(memory.cut(pieces.text[start:end]))
    if short_P.any():
        short = Pieces(pieces.text, pieces.codes_C, pieces.starts_P[short_P], pieces.ends_P[short_P])
        _mark_short(begins_C, short, memory)


def word_begins(words: list[str]) -> npt.NDArray[np.bool_]:
    """bool[C]: whether a word begins at each character of what the words are together."""
    ends = np.cumsum(np.fromiter(map(len, words), np.intp, len(words)))
    begins_C = np.zeros(ends[-1] if ends.size else 0, np.bool_)
    begins_C[:1] = True
    begins_C[ends[:-1]] = True
    return begins_C


def _mark_short(begins_C: npt.NDArray[np.bool_], pieces: Pieces, memory: Memory) -> None:
    lengths_P = pieces.ends_P - pieces.starts_P
    firsts_P = np.cumsum(lengths_P) - lengths_P
    offsets_K = np.arange(lengths_P.sum()) - np.repeat(firsts_P, lengths_P)  # in its piece
    characters_K = offsets_K + np.repeat(pieces.starts_P, lengths_P)  # in the text
    keys_P = np.add.reduceat(pieces.codes_C[characters_K] * _WEIGHTS[offsets_K], firsts_P)
    bits_K = np.repeat(_recall(memory, keys_P, pieces), lengths_P)
    begins_C[characters_K] = bits_K >> offsets_K.astype(np.uint64) & np.uint64(1)


def _recall(memory: Memory, keys_P: Bits, pieces: Pieces) -> Bits:
    """The bits of each piece; what is new is cut, each different piece once."""
    slots_P = keys_P >> np.uint64(64 - _SLOT_BITS)
    bits_P: Bits = memory.bits[slots_P]
    new = np.flatnonzero(memory.keys[slots_P] != keys_P)
    if new.size:
        _, first, which = np.unique(keys_P[new], return_index=True, return_inverse=True)
        bounds = zip(pieces.starts_P[new[first]].tolist(), pieces.ends_P[new[first]].tolist(), strict=True)
        bits_P[new] = _cut_all(memory.cut, [pieces.text[start:end] for start, end in bounds])[which]
        # The first of a slot, as both arrays must have the same one.
        slots, first = np.unique(slots_P[new], return_index=True)
        memory.keys[slots], memory.bits[slots] = keys_P[new[first]], bits_P[new[first]]
    return bits_P


def _cut_all(cut: Cut, pieces: list[str]) -> Bits:
    """The bits of each piece, from one call."""
    begins_K = word_begins(cut(_SEPARATOR.join([*pieces, ""])))
    lengths_P = np.fromiter(map(len, pieces), np.intp, len(pieces)) + len(_SEPARATOR)
    firsts_P = np.cumsum(lengths_P) - lengths_P
    begins_K[firsts_P] = True
    begins_K[firsts_P + lengths_P - 1] = False  # the separators
    offsets_K = (np.arange(begins_K.size) - np.repeat(firsts_P, lengths_P)).astype(np.uint64)
    bits_P: Bits = np.bitwise_or.reduceat(begins_K.astype(np.uint64) << np.minimum(offsets_K, 63), firsts_P)
    return bits_P
