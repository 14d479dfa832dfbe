"""The expected failures of training, each with the exit code a command ends with."""

from collections.abc import Iterator
from contextlib import contextmanager

from data_pipeline.errors import BertmaeError, DataError, UserError

__all__ = [
    "BertmaeError",
    "CheckpointError",
    "DataError",
    "NonFiniteError",
    "StoppedError",
    "UserError",
    "the_same_everywhere",
]


class CheckpointError(BertmaeError):
    """A checkpoint that is missing, incomplete or damaged, or that could not be written."""

    exit_code = 4


class NonFiniteError(BertmaeError):
    """Too many updates in a row had gradients that are not finite."""

    exit_code = 5


class StoppedError(BertmaeError):
    """The run stopped because it was asked to; its checkpoint is committed and the same command goes on."""

    exit_code = 75


@contextmanager
def the_same_everywhere() -> Iterator[None]:
    """Around what every rank does alike, such as reading a command line or a file: the first rank tells a mistake."""
    try:
        yield
    except BertmaeError as error:
        error.everywhere = True
        raise


def first_line(error: Exception) -> str:
    """What a library's error says, as far as it fits into a line of ours."""
    return str(error).strip().split("\n")[0] or type(error).__name__
