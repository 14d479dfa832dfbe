"""What a text looks like after cleaning: no control characters, NFC, no white space at its ends."""

import re
import unicodedata

RULES = "control characters out, NFC, strip"  # stands in the manifest: change it when the outcome changes

# Form feeds and their like end a line; taking them out would glue two words together.
_LINE_ENDS = re.compile("[\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")
# C0 and C1 without tab, line feed and carriage return; lone surrogates, which no UTF-8 can hold; byte-order marks.
_UNWANTED = re.compile("[\x00-\x08\x0e-\x1b\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff]+")
_SUSPECT_BYTES = bytes([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F])
_USUAL_BYTES = bytes(sorted(set(range(256)) - set(_SUSPECT_BYTES)))
_SUSPECT_CHARACTERS = "\u2028\u2029\ufeff"
# In UTF-8: C1 (U+0080 to U+009F), surrogates.
_SUSPECT_RANGES = (re.compile(b"\xc2[\x80-\x9f]"), re.compile(b"\xed[\xa0-\xbf]"))
_KINDS = {
    "NUL": re.compile("\x00"),
    "control characters": re.compile("[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]"),
    "line separators": re.compile("[\u2028\u2029]"),
    "lone surrogates": re.compile("[\ud800-\udfff]"),
    "byte-order mark": re.compile("\ufeff"),
}


def clean(text: str) -> str:
    """The cleaned text; empty when nothing is left. Cleaning twice is cleaning once."""
    return normalize(_UNWANTED.sub("", _LINE_ENDS.sub("\n", text)) if has_unwanted(text) else text)


def normalize(text: str) -> str:
    """What `clean` gives for a text that has nothing unwanted."""
    return unicodedata.normalize("NFC", text).strip()


def unwanted_kinds(text: str) -> list[str]:
    """What cleaning will take out of a raw text or turn into line feeds, by kind, for the report."""
    if not has_unwanted(text):
        return []
    return [kind for kind, pattern in _KINDS.items() if pattern.search(text)]


def has_unwanted(text: str) -> bool:
    """Whether `text` has characters that cleaning takes out or turns into line feeds."""
    # One regular expression over characters takes two to eight times as long.
    content = text.encode(errors="surrogatepass")
    if content.translate(None, _USUAL_BYTES):
        return True
    if text.isascii():
        return False
    return any(character in text for character in _SUSPECT_CHARACTERS) or any(
        pattern.search(content) for pattern in _SUSPECT_RANGES
    )
