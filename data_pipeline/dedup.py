"""Exact duplicates and the validation split, both decided by a hash of the cleaned text."""

import xxhash

DIGEST_BYTES = 16
RULES = "exact"  # stands in the manifest: change it when the outcome changes


def digest(text: str) -> bytes:
    """The hash of a cleaned text: xxh3_128, 16 bytes."""
    return xxhash.xxh3_128_digest(text.encode())


def is_validation(text_digest: bytes, fraction: float) -> bool:
    """Whether a document is held out: a function of its text alone, so it never changes as the corpus grows."""
    return int.from_bytes(text_digest[:8], "big") < fraction * 2.0**64


class SeenTexts:
    """The texts met so far; the first of equal ones stays. Memory: about 90 bytes a text."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()

    def first_time(self, text_digest: bytes) -> bool:
        """Whether this text was not met before; from now on it was."""
        before = len(self._digests)
        self._digests.add(text_digest)
        return len(self._digests) > before
