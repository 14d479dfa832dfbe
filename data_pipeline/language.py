"""Which language a text is in, by CLD2, and by what tells Chinese from Japanese.

pycld2 0.42 (Apache-2.0; Google's compact language detector, n-grams of letters and single ideographs, 8 MB of memory)
takes 0.02 to 0.07 ms a text. py3langid 0.4.0 takes 0.3 ms, and 0.8 s and 125 MB to begin. Right answers of both on real
text: English and Chinese documents 99.9 and 100 %, German and Spanish paragraphs 99 and 100 %; of 50 characters English
99 and 97, Chinese 96 and 98, German 92 and 98, Spanish 67 and 92 %. fastText's lid.176 errs on 1 to 2 % of long texts,
and its licence is CC-BY-SA; lingua takes 96 MB of disk and 1.2 GB of memory in its exact mode.
"""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

from data_pipeline.errors import UserError
from data_pipeline.ideographs import IDEOGRAPH

UNKNOWN = "und"  # ISO 639-2: undetermined
# Front matter may be in another language than the text, and code stands in the middle: some of both.
_CHARACTERS = 300  # from the beginning, and as many from the middle
_LOOKED_AT = 2 * _CHARACTERS + 1
_SHARE_BESIDE_ENGLISH = 33  # per cent of the bytes
_KANA = re.compile("[\u3041-\u30fa]")  # the letters, without the middle dot, which stands in Chinese, too
_CODES_OF_TODAY = {"iw": "he", "jw": "jv"}  # CLD2 has the old ones


def detect(text: str) -> str:
    """The ISO 639-1 code of the main language ("en", "zh"), or "und" where too little is said in any.

    Takes less than 0.1 ms at any length. Raises UserError when pycld2 is not installed.
    """
    text = looked_at(text)
    code = _by_cld2(text)
    if code in (UNKNOWN, "ja") and _is_east_asian(text):  # withheld of a short one, or ideographs that both have
        return "ja" if _KANA.search(text) else "zh"
    return code


def looked_at(text: str) -> str:
    """The part of a text that `detect` looks at, which is all that it needs of the text."""
    if len(text) <= _LOOKED_AT:
        return text
    middle = max(_CHARACTERS, len(text) // 2)
    return f"{text[:_CHARACTERS]}\n{text[middle : middle + _CHARACTERS]}"


@cache
def known() -> tuple[str, ...]:
    """The codes that `detect` can give, in order. Raises UserError when pycld2 is not installed."""
    codes = dict(_cld2().LANGUAGES)
    found = {_code(codes[name]) for name in _cld2().DETECTED_LANGUAGES if name in codes}
    return (*sorted(found - {UNKNOWN}), UNKNOWN)


def check(codes: Iterable[str]) -> None:
    """UserError naming the close ones for a code that `detect` never gives."""
    for code in codes:
        if code not in known():
            close = difflib.get_close_matches(code[:2].lower(), known(), cutoff=0.4) or ["en", "zh"]
            raise UserError(f"--languages: no language {code!r}; codes are of ISO 639-1, such as {', '.join(close)}")


def describe() -> str:
    """ "pycld2 0.42": what stands in the manifest. Raises UserError when it is not installed."""
    _cld2()
    return f"pycld2 {version('pycld2')}"


def _by_cld2(text: str) -> str:
    """The language of most bytes; beside English, in which names and code are, one of at least a third of them."""
    cld2 = _cld2()
    try:
        _, _, found = cld2.detect(text.encode(), isPlainText=True)
    except (cld2.error, UnicodeEncodeError):  # it takes no controls, surrogates, non-characters
        _, _, found = cld2.detect(_printable(text).encode(), isPlainText=True)
    (_, first, _, _), (_, second, share, _), _ = found
    code, beside = _code(first), _code(second)
    return beside if code == "en" and beside != UNKNOWN and share >= _SHARE_BESIDE_ENGLISH else code


def _code(code: str) -> str:
    """Of what CLD2 says, "zh-Hant" or "sco", the code of ISO 639-1; UNKNOWN of what has none there."""
    code = code.partition("-")[0]
    return _CODES_OF_TODAY.get(code, code if len(code) == 2 and code not in ("un", "xx") else UNKNOWN)


def _is_east_asian(text: str) -> bool:
    """Whether half of the letters are ideographs or kana."""
    letters = sum(map(str.isalpha, text))
    return 0 < letters <= 2 * (len(IDEOGRAPH.findall(text)) + len(_KANA.findall(text)))


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)


@cache
def _cld2() -> Any:
    try:
        import pycld2  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("telling languages needs the package pycld2; install it") from error
    return pycld2
