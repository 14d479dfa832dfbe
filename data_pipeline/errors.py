"""The user's mistakes and bad data, each with the exit code a command ends with."""

from typing import Self


class BertmaeError(Exception):
    """An expected failure: its text is one line that names the thing and the way out."""

    exit_code = 1
    everywhere = False  # every process of a job raises the same: the first one speaks for all

    @classmethod
    def agreed(cls, text: str) -> Self:
        """An error that every process of the job raises."""
        error = cls(text)
        error.everywhere = True
        return error


class UserError(BertmaeError):
    """A mistake in a command, a configuration, a path or a permission."""

    exit_code = 2


class DataError(BertmaeError):
    """Shards or input data that are damaged or do not fit together."""

    exit_code = 3
