"""Segmenters: where the words of Chinese are, by name."""

from collections.abc import Callable
from importlib.metadata import version

from data_pipeline.errors import UserError

Segmenter = Callable[[str], list[str]]  # the words of a text in order; joined they are the text
NONE = "none"
DEFAULT = "jieba"


def _open_jieba() -> Segmenter:
    try:
        import rjieba
    except ImportError as error:
        raise UserError("--word-segmenter jieba: needs the package rjieba; install it, or give none") from error
    cut: Segmenter = rjieba.cut
    return cut


# Of each: what opens it in a worker, and the package whose version decides its words.
_REGISTRY: dict[str, tuple[Callable[[], Segmenter], str]] = {"jieba": (_open_jieba, "rjieba")}
NAMES = (NONE, *_REGISTRY)


def open_segmenter(name: str) -> Segmenter | None:
    """The segmenter called `name`; None for "none". Raises UserError when its package is not installed."""
    return None if name == NONE else _REGISTRY[name][0]()


def describe_segmenter(name: str) -> str:
    """ "jieba (rjieba 0.2.2)": what stands in the manifest. Raises UserError when its package is not installed."""
    if name == NONE:
        return NONE
    open_segmenter(name)
    package = _REGISTRY[name][1]
    return f"{name} ({package} {version(package)})"
