"""One record of an input file, and what may be wrong with a file; every reader gives these."""

from typing import NamedTuple

OVERSIZED = "larger than --max-document-bytes"
CUT = "cut at --max-document-bytes"
UNOPENED = "in a page too large to be opened"
BOM = "byte-order mark"


class Record(NamedTuple):
    """One record of a file, as bytes that a worker turns into a text."""

    line: int  # where it starts, from 1; the row in .parquet and .arrow, the element in .json
    content: bytes
    reason: str = ""  # why it is none, when the reader found that
    repair: str = ""  # what the reader did to it
    position: int = 0  # bytes of the file read by then, where tell() does not know


class Value(NamedTuple):
    """One value of a column of texts."""

    content: bytes | None  # None where there is no text; of a text that is too large the beginning
    reason: str = ""  # OVERSIZED, UNOPENED or empty


class FileProblemError(Exception):
    """A file that cannot be read, or not to its end: the kind for the report, and the details."""

    def __init__(self, kind: str, details: str) -> None:
        super().__init__(kind, details)
        self.kind, self.details = kind, details
