"""Segmenters: where the words of Chinese are, by name."""

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import UserError
from data_pipeline.jieba_words import open_jieba

# Of a text bool[C]: whether a word begins at each of its characters. No word reaches across a line feed.
Segmenter = Callable[[str], npt.NDArray[np.bool_]]
NONE = "none"
DEFAULT = "jieba"

# Of each: what opens it in a worker, and the packages it needs; the version of the first decides its words.
_REGISTRY: dict[str, tuple[Callable[[], Segmenter], tuple[str, ...]]] = {"jieba": (open_jieba, ("rjieba", "jieba"))}
NAMES = (NONE, *_REGISTRY)


def open_segmenter(name: str) -> Segmenter | None:
    """The segmenter called `name`; None for "none". Raises UserError when its packages are not installed."""
    return None if name == NONE else _REGISTRY[name][0]()


def describe_segmenter(name: str) -> str:
    """ "jieba (rjieba 0.2.2)": what stands in the manifest. Raises UserError when its packages are not installed."""
    if name == NONE:
        return NONE
    packages = _REGISTRY[name][1]
    try:
        versions = [version(package) for package in packages]
    except PackageNotFoundError as error:
        needed = " and ".join(packages)
        raise UserError(f"--word-segmenter {name}: needs the packages {needed}; install them, or give none") from error
    return f"{name} ({packages[0]} {versions[0]})"
