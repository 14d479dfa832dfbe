"""Paragraphs of a text (its lines) and their digests, by which boilerplate that stands in many documents is found."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

MIN_BYTES = 100  # of UTF-8: shorter ones, such as "}" or a heading, stand in many texts by right and always stay
NEVER_EQUAL = (0, 0)  # the digest of a paragraph that always stays
_HALF = (1 << 64) - 1


def split(text: str) -> list[str]:
    """The lines of `text`, each with its line feed; one after the other they are `text` again."""
    lines = [line + "\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def digests(parts: Sequence[str]) -> npt.NDArray[np.uint64]:
    """uint64[P, 2]: xxh3_128 of each paragraph without the white space at its ends, or NEVER_EQUAL."""
    return np.array([_digest(part) for part in parts], np.uint64).reshape(-1, 2)


def _digest(paragraph: str) -> tuple[int, int]:
    content = paragraph.strip().encode()
    if len(content) < MIN_BYTES:
        return NEVER_EQUAL
    value = xxhash.xxh3_128_intdigest(content)
    return value >> 64, value & _HALF
