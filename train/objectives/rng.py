"""Random numbers as a pure function: a 64-bit hash of (seed, epoch, stream, row, offset), on any device.

Masks drawn from it do not depend on rank, micro-batch, order or device. The mixing is SplitMix64's
finalizer (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), which is a bijection
of 64-bit words. torch has no unsigned 64-bit arithmetic, so words are int64 that wrap around.
"""

from __future__ import annotations

import torch

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def hash_words(seed: int, epoch: int, stream: int, row_T: torch.Tensor, offset_T: torch.Tensor) -> torch.Tensor:
    """63 random bits (int64, >= 0) for each token, from its row's id and its offset in the row."""
    key = hash_integers(seed, epoch, stream)
    word_T = _mix(row_T * _signed(_GOLDEN) + _signed(key))
    word_T = _mix(word_T + offset_T * _signed(_FIRST))
    return _shift(word_T, 1)


def hash_integers(*values: int) -> int:
    """One 64-bit word that depends on every value and on their order."""
    word = 0
    for value in values:
        word = _mix_int(word ^ (value & _WORD))
    return word


def below(share: float, word_T: torch.Tensor) -> torch.Tensor:
    """True with probability `share`, to 2^-62: an integer comparison, thus equal on every device."""
    return word_T < min(int(share * (1 << 63)), (1 << 63) - 1)


def integers(size: int, word_T: torch.Tensor) -> torch.Tensor:
    """Uniform integers in [0, size) for size < 2^31: the upper 32 of the 63 bits, scaled."""
    return (_shift(word_T, 31) * size) >> 32


def _mix(word_T: torch.Tensor) -> torch.Tensor:
    word_T = (word_T ^ _shift(word_T, 30)) * _signed(_FIRST)
    word_T = (word_T ^ _shift(word_T, 27)) * _signed(_SECOND)
    return word_T ^ _shift(word_T, 31)


def _shift(word_T: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical right shift of a signed word."""
    return (word_T >> bits) & ((1 << (64 - bits)) - 1)


def _mix_int(word: int) -> int:
    """The same finalizer for one Python integer."""
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * _FIRST) & _WORD
    word = ((word ^ (word >> 27)) * _SECOND) & _WORD
    return word ^ (word >> 31)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
