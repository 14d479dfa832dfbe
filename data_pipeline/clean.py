"""What a text looks like after cleaning: no control characters, NFC, no white space at its ends."""

import re
import unicodedata

RULES = "control characters out, NFC, strip"  # stands in the manifest: change it when the outcome changes

# Form feeds and their like end a line; taking them out would glue two words together.
_LINE_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# C0 and C1 without tab, line feed and carriage return; lone surrogates, which no UTF-8 can hold; byte-order marks.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]+")


def clean(text: str) -> str:
    """The cleaned text; empty when nothing is left. Cleaning twice is cleaning once."""
    text = _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))
    return unicodedata.normalize("NFC", text).strip()
