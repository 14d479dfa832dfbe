"""Which language a text is in, by py3langid.

py3langid 0.4.0 (BSD-3; naive Bayes on bytes, Lui and Baldwin 2012; 4.5 MB, its model inside) was right on all samples
of 300 characters, English and Chinese. fastText's lid.176 is several times faster, but errs on 1 to 2 % of long texts
too, and its licence is CC-BY-SA. lingua takes 96 MB of disk, 1.2 GB of memory in its exact mode, and more time.
"""

import difflib
import tempfile
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from typing import Any

from data_pipeline.errors import UserError

UNKNOWN = "und"  # ISO 639-2: undetermined
# Front matter may be in another language than the text, and code stands in the middle: some of both.
_CHARACTERS = 150  # from the beginning, and as many from the middle
_LOOKED_AT = 2 * _CHARACTERS + 1
_CONFIDENCE = 0.3  # below it, at 20 English characters, most guesses are wrong


def detect(text: str) -> str:
    """The ISO 639-1 code of the main language ("en", "zh"), or "und" where too little is said in any.

    Takes about 0.3 ms at any length; the first call of a process another 0.6 s and 90 MB. Raises UserError when
    py3langid is not installed.
    """
    text = looked_at(text)
    if not any(map(str.isalpha, text)):
        return UNKNOWN
    code, confidence = _identifier().classify(text)
    return str(code) if confidence >= _CONFIDENCE else UNKNOWN


def looked_at(text: str) -> str:
    """The part of a text that `detect` looks at, which is all that it needs of the text."""
    if len(text) <= _LOOKED_AT:
        return text
    middle = max(_CHARACTERS, len(text) // 2)
    return f"{text[:_CHARACTERS]}\n{text[middle : middle + _CHARACTERS]}"


def known() -> tuple[str, ...]:
    """The codes that `detect` can give, in order. Raises UserError when py3langid is not installed."""
    return (*sorted(set(_identifier().nb_classes)), UNKNOWN)


def check(codes: Iterable[str]) -> None:
    """UserError naming the close ones for a code that `detect` never gives."""
    for code in codes:
        if code not in known():
            close = difflib.get_close_matches(code[:2].lower(), known(), cutoff=0.4) or ["en", "zh"]
            raise UserError(f"--languages: no language {code!r}; codes are of ISO 639-1, such as {', '.join(close)}")


def describe() -> str:
    """ "py3langid 0.4.0": what stands in the manifest. Raises UserError when it is not installed."""
    _identifier()
    return f"py3langid {version('py3langid')}"


@cache
def _identifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]
    except ImportError as error:
        raise UserError("telling languages needs the package py3langid; install it") from error
    try:
        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    except OSError as error:  # it unpacks its model there
        raise UserError(
            f"{tempfile.gettempdir()}: cannot write: {error.strerror}; TMPDIR names another folder"
        ) from error
    # Without dialects and creoles, which short texts are taken for: Wu for Chinese, Nigerian Pidgin for English.
    identifier.set_languages([code for code in identifier.labels if len(code) == 2])
    return identifier
