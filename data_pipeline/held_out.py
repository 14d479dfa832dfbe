"""The hash of a text, and whether the text is held out by it."""

import math

import xxhash


def digest(text: str) -> bytes:
    """The hash of a cleaned text: xxh3_128, 16 bytes."""
    return xxhash.xxh3_128_digest(text.encode())


def validation_limit(fraction: float) -> int:
    """The texts whose first 8 bytes of the hash, big-endian, are below it are held out: `fraction` of all texts.

    A function of a text alone, so that no text changes sides as the corpus grows.
    """
    return math.ceil(fraction * 2.0**64)
