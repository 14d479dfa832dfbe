"""What a text looks like after cleaning: no control characters, NFC, no white space at its ends."""

import re
import unicodedata

RULES = "control characters out, NFC, strip"  # stands in the manifest: change it when the outcome changes

# Form feeds and their like end a line; taking them out would glue two words together.
_LINE_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# C0 and C1 without tab, line feed and carriage return; lone surrogates, which no UTF-8 can hold; byte-order marks.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]+")
_ANY = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")
_KINDS = {
    "NUL": re.compile("\x00"),
    "control characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "lone surrogates": re.compile("[\ud800-\udfff]"),
    "byte-order mark": re.compile("\ufeff"),
}


def clean(text: str) -> str:
    """The cleaned text; empty when nothing is left. Cleaning twice is cleaning once."""
    if _ANY.search(text):
        text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    return unicodedata.normalize("NFC", text).strip()


def unwanted_kinds(text: str) -> list[str]:
    """What cleaning will take out of a raw text or turn into line feeds, by kind, for the report."""
    if not _ANY.search(text):
        return []
    return [kind for kind, pattern in _KINDS.items() if pattern.search(text)]
