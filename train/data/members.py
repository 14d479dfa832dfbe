"""Owns where the arrays of a block lie in its bytes: known from the manifest's counts, so that no header is parsed.

Legend: T tokens and D documents of a block, D1 = D + 1.
"""

import tarfile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import DataError
from data_pipeline.shards import MEMBERS, TAR_RECORD

# A version 1 .npy header of a flat array: numpy pads it to the next multiple of 64 bytes.
NPY_HEADER = 128
_OFFSET_BYTES = 4  # uint32


class Members(NamedTuple):
    """The first byte of each array in a block; its tar header and its .npy header stand right before."""

    ids: int
    offsets: int
    words: int


def locate(tokens: int, documents: int, token_bytes: int) -> Members:
    """Where the arrays of a block with these counts lie."""
    ids = TAR_RECORD + NPY_HEADER
    offsets = ids + _padded(token_bytes * tokens) + TAR_RECORD + NPY_HEADER
    words = offsets + _padded(_OFFSET_BYTES * (documents + 1)) + TAR_RECORD + NPY_HEADER
    return Members(ids, offsets, words)


def offsets_span(tokens: int, documents: int, token_bytes: int) -> tuple[int, int]:
    """(first byte in the block, bytes) of the member with the document bounds, its headers included."""
    start = locate(tokens, documents, token_bytes).offsets - TAR_RECORD - NPY_HEADER
    return start, TAR_RECORD + NPY_HEADER + _OFFSET_BYTES * (documents + 1)


def parse_offsets(content: bytes, tokens: int, documents: int) -> npt.NDArray[np.uint32]:
    """The document bounds [D1] in the bytes of `offsets_span`. Raises DataError saying what is malformed."""
    try:
        name = tarfile.TarInfo.frombuf(content[:TAR_RECORD], "ascii", "strict").name
    except (tarfile.HeaderError, ValueError) as error:
        raise DataError(f"no tar header before the document bounds: {error}") from error
    if name.partition(".")[2] != MEMBERS[1]:
        raise DataError(f"member {name!r} stands where the document bounds belong")
    offsets_D1: npt.NDArray[np.uint32] = np.frombuffer(content, "<u4", offset=TAR_RECORD + NPY_HEADER)
    header = content[TAR_RECORD : TAR_RECORD + NPY_HEADER]
    if f"'descr': '<u4', 'fortran_order': False, 'shape': ({documents + 1},), " not in header.decode("latin-1"):
        raise DataError(f"{name} is no flat array of {documents + 1} uint32")
    if offsets_D1[0] != 0 or offsets_D1[-1] != tokens or (offsets_D1[1:] <= offsets_D1[:-1]).any():
        raise DataError(f"{name}: document bounds do not rise from 0 to {tokens}")
    return offsets_D1


def _padded(array_bytes: int) -> int:
    """Bytes of the array and of the zeros after it: header, array and zeros fill whole tar records."""
    return array_bytes + -(NPY_HEADER + array_bytes) % TAR_RECORD
