"""The characters of Chinese."""

import re
import sys
from functools import cache

import numpy as np
import numpy.typing as npt

_BLOCKS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2EBEF), (0x2F800, 0x2FA1F))
IDEOGRAPH = re.compile("[" + "".join(f"{chr(first)}-{chr(last)}" for first, last in _BLOCKS) + "]")


@cache
def ideographs() -> npt.NDArray[np.bool_]:
    """bool[0x110000]: which characters are ideographs."""
    table = np.zeros(sys.maxunicode + 1, np.bool_)
    for first, last in _BLOCKS:
        table[first : last + 1] = True
    return table
