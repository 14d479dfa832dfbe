"""Named filters: documents that are no prose by length, symbols, digits or repetition, or in another language, go.

The repetition rules are those of Rae et al. 2021 (Gopher), table A1, with limits that leave clean documentation alone:
twice theirs for lines and the most frequent n-grams, four times theirs for repeated n-grams. Where a document is
Chinese, Japanese or Korean, a character stands for half a word.
Legend: U units of a document (its words, or its characters where it is CJK), C characters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline import language
from data_pipeline.errors import UserError
from data_pipeline.unicode_tables import tabulate

RULES = "Gopher lists, CJK by characters"  # stands in the manifest: change it when the outcome changes
NAMES = (
    "length",
    "symbols",
    "digits",
    "repeated-lines",
    "repeated-ngrams",
)  # these are all, where no language is named
LANGUAGE = "language"  # the last one, off where no language is named
CJK_SHARE = 0.3  # of the characters that are no white space: from here on a document counts as CJK
MIN_LINES = 10  # fewer are too few to speak of repetition
MIN_WORDS = 100
_SPACE, _SYMBOL, _DIGIT, _IDEOGRAPHIC, _ELSE = range(5)  # of characters: symbols and punctuation; C, J, K alike
_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_CJK_PATTERN = re.compile(f"[{_CJK}]")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, bits well mixed: the base of the rolling hash
_FACTOR_32 = np.uint32(0x9E3779B1)

Prints = npt.NDArray[np.uint32]  # in place of ids: the same for equal units, and rarely for others
Sizes = npt.NDArray[np.int64] | None  # characters of each unit; None where each is one
Words = tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]  # ids_U, characters of each unit


@dataclass(frozen=True, slots=True)
class Failed:
    """Why a document is dropped: the filter's name and what it measured."""

    name: str
    measure: str


@dataclass(frozen=True, slots=True)
class Filters:
    """Chosen filters and their thresholds. Shares are from 0 to 1; a document above one of them is dropped."""

    names: tuple[str, ...] = NAMES
    min_characters: int = 5
    max_characters: int = 5_000_000
    max_symbol_share: float = 0.5  # of the characters that are no white space
    max_digit_share: float = 0.5
    max_repeated_lines: float = 0.6  # lines that stood before, of all lines
    max_repeated_line_characters: float = 0.4  # the same in characters
    max_top_ngrams: tuple[float, ...] = (0.40, 0.36, 0.32)  # characters in the most frequent 2-, 3-, 4-gram
    max_repeated_ngrams: tuple[float, ...] = (0.60, 0.56, 0.52, 0.48, 0.44, 0.40)  # in 5- to 10-grams met before
    languages: tuple[
        str, ...
    ] = ()  # codes of ISO 639-1 that are kept by the filter language; "und" where none is found

    @classmethod
    def none(cls) -> "Filters":
        """No filter at all."""
        return cls(names=())

    def failed(self, text: str) -> Failed | None:
        """The first chosen filter that a cleaned text does not pass, in the order of NAMES."""
        for name in self.names:
            measure = _RULES[name](self, text)
            if measure:
                return Failed(name, measure)
        return None

    def settings(self) -> dict[str, Any]:
        """What stands in the manifest: the chosen names and, if there are any, all thresholds."""
        if not self.names:
            return {"names": ()}
        return asdict(self) | ({"language_model": language.describe()} if LANGUAGE in self.names else {})


def chosen(text: str, languages: Sequence[str] = ()) -> tuple[str, ...]:
    """The names in "none", "all" or "length,digits", in the order of NAMES, and LANGUAGE where `languages` are named.

    Raises UserError for another name, for the filter language without languages, and for an unknown language.
    """
    given = {"none": [], "all": list(NAMES)}.get(text, [name.strip() for name in text.split(",")])
    unknown = [name for name in given if name not in (*NAMES, LANGUAGE)]
    if unknown:
        there = ", ".join((*NAMES, LANGUAGE))
        raise UserError(f"--filters {text}: no filter {unknown[0]!r}; there are {there}, all, none")
    if LANGUAGE in given and not languages:
        raise UserError(f"--filters {text}: the filter language needs --languages, such as --languages en,zh")
    language.check(languages)
    return (*(name for name in NAMES if name in given), *([LANGUAGE] if languages else []))


def _length(filters: Filters, text: str) -> str:
    if filters.min_characters <= len(text) <= filters.max_characters:
        return ""
    return f"{len(text):,} characters"


def _symbols(filters: Filters, text: str) -> str:
    share = _share(text, _SYMBOL)
    return f"{share:.0%} symbols" if share > filters.max_symbol_share else ""


def _digits(filters: Filters, text: str) -> str:
    share = _share(text, _DIGIT)
    return f"{share:.0%} digits" if share > filters.max_digit_share else ""


def _repeated_lines(filters: Filters, text: str) -> str:
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    different = set(lines)
    if len(lines) < MIN_LINES or len(lines) == len(different):
        return ""
    share = 1 - len(different) / len(lines)
    if share > filters.max_repeated_lines:
        return f"{share:.0%} of the lines repeated"
    share = 1 - sum(map(len, different)) / sum(map(len, lines))
    if share > filters.max_repeated_line_characters:
        return f"{share:.0%} of the characters in repeated lines"
    return ""


def _repeated_ngrams(filters: Filters, text: str) -> str:
    characters = _characters_of(text)
    scale = 2 if characters.is_cjk else 1
    prints_U, sizes_U = _character_prints(characters) if scale == 2 else _word_prints(characters)
    if prints_U.size < MIN_WORDS * scale or _surely_passes(filters, prints_U, sizes_U, scale):
        return ""
    return _measured_ngrams(filters, text, scale)


def _measured_ngrams(filters: Filters, text: str, scale: int) -> str:
    ids_U, sizes_U = _characters(text) if scale == 2 else _words(text)
    tops, repeated = filters.max_top_ngrams, filters.max_repeated_ngrams
    lowest = min(repeated, default=1.0)
    ends_U1 = np.cumsum(np.concatenate([np.zeros(1, np.int64), sizes_U]))
    for n, hashes in enumerate(_hashes(ids_U, scale, 2 + len(tops) + len(repeated)), start=2):
        top = n - 2 < len(tops)
        limit = tops[n - 2] if top else repeated[n - 2 - len(tops)]
        if limit >= 1:
            continue
        share = _top_share(hashes, ends_U1, limit) if top else _repeated_share(hashes, sizes_U, len(sizes_U))
        if share > limit:
            gram = f"{n}-gram" if scale == 1 else f"{n * scale}-character string"
            return f"{share:.0%} of the characters in {f'the most frequent {gram}' if top else f'repeated {gram}s'}"
        if not top and share <= lowest:  # repeated longer n-grams hold repeated shorter ones: no share grows with n
            break
    return ""


def _language(filters: Filters, text: str) -> str:
    found = language.detect(text)
    return "" if found in filters.languages else found


_RULES: dict[str, Callable[[Filters, str], str]] = {
    "length": _length,
    "symbols": _symbols,
    "digits": _digits,
    "repeated-lines": _repeated_lines,
    "repeated-ngrams": _repeated_ngrams,
    LANGUAGE: _language,
}


class _Characters(NamedTuple):
    """A text, character by character, and how many of its characters are of which class."""

    codes_C: npt.NDArray[Any]
    classes_C: npt.NDArray[np.uint8]
    counts: dict[int, int]

    @property
    def visible(self) -> int:
        """How many are no white space."""
        return len(self.classes_C) - self.counts[_SPACE]

    @property
    def is_cjk(self) -> bool:
        """Whether at least CJK_SHARE of those that are no white space are Chinese, Japanese or Korean."""
        return 0 < self.counts[_IDEOGRAPHIC] >= CJK_SHARE * self.visible


@lru_cache(maxsize=1)  # of the document that one rule after the other looks at
def _characters_of(text: str) -> _Characters:
    codes_C = _codes(text)
    classes_C = _class_table().take(codes_C)
    counts = {kind: int(np.count_nonzero(classes_C == kind)) for kind in (_SPACE, _SYMBOL, _DIGIT, _IDEOGRAPHIC)}
    return _Characters(codes_C, classes_C, counts)


def _share(text: str, kind: int) -> float:
    characters = _characters_of(text)
    return characters.counts[kind] / max(1, characters.visible)


def _codes(text: str) -> npt.NDArray[Any]:
    if text.isascii():
        return np.frombuffer(text.encode(), np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


@cache
def _class_table() -> npt.NDArray[np.uint8]:
    return tabulate(_class)


def _class(character: str) -> int:
    if character.isspace():
        return _SPACE
    category = unicodedata.category(character)
    if category == "Nd":
        return _DIGIT
    if category[0] in "PS":
        return _SYMBOL
    return _IDEOGRAPHIC if _CJK_PATTERN.match(character) else _ELSE


def _surely_passes(filters: Filters, prints_U: Prints, sizes_U: Sizes, scale: int) -> bool:
    """Whether upper bounds settle that no limit on n-grams is passed; n-grams of equal prints count as equal."""
    tops, repeated = filters.max_top_ngrams, filters.max_repeated_ngrams
    total = prints_U.size if sizes_U is None else int(sizes_U.sum())
    buckets_P = _buckets(_joined(prints_U, prints_U, 1), 1)
    # An n-gram has no more occurrences than any two neighbours in it: so no more characters than its pairs have.
    if sizes_U is None:
        heaviest = 2 * int(np.bincount(buckets_P).max())
    else:
        heaviest = int(np.bincount(buckets_P, sizes_U[:-1] + sizes_U[1:]).max())
    if any((n * scale + 1) // 2 * heaviest / total > limit for n, limit in enumerate(tops, start=2)):
        return False
    # Repeated longer n-grams hold repeated shorter ones: the shortest has the largest share.
    limit = min(repeated, default=1.0)
    return (
        limit >= 1 or _repeated_share(_run_prints(prints_U, (2 + len(tops)) * scale), sizes_U, prints_U.size) <= limit
    )


def _run_prints(prints_U: Prints, length: int) -> Prints:
    """A print of the `length` units from each start, out of those of 1, 2, 4, 8, ... units."""
    power, size = prints_U, 1
    runs, done = prints_U[:0], 0
    while True:
        if length & size:
            runs = _joined(runs, power, done) if done else power
            done += size
        if done == length:
            return runs
        power, size = _joined(power, power, size), 2 * size


def _joined(left: Prints, right: Prints, distance: int) -> Prints:
    """Prints of what is in `left` and, `distance` units after its start, in `right`."""
    later = right[distance:]
    return left[: len(later)] * (_FACTOR_32 + np.uint32(2 * distance)) + later


def _word_prints(characters: _Characters) -> tuple[Prints, Sizes]:
    """Of each word the sum over its characters, and their number."""
    codes_C, classes_C, _ = characters
    inside_C2 = np.zeros(codes_C.size + 2, np.bool_)
    inside_C2[1:-1] = classes_C != _SPACE
    edges = np.flatnonzero(inside_C2[1:] != inside_C2[:-1])
    starts_U, ends_U = edges[::2], edges[1::2]
    sums_C1 = np.zeros(codes_C.size + 1, np.uint32)
    np.cumsum(_print_table().take(codes_C), out=sums_C1[1:])
    return sums_C1[ends_U] - sums_C1[starts_U], ends_U - starts_U


def _character_prints(characters: _Characters) -> tuple[Prints, Sizes]:
    return characters.codes_C[characters.classes_C != _SPACE], None


@cache
def _print_table() -> Prints:
    """uint32[0x110000]: numbers without order for characters, whose sums rarely meet."""
    mixed = np.arange(1, 0x110001, dtype=np.uint64) * _FACTOR
    return (((mixed ^ (mixed >> np.uint64(29))) * _FACTOR) >> np.uint64(32)).astype(np.uint32)


def _words(text: str) -> Words:
    words = text.split()
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(word, len(numbers)) for word in words]
    return np.array(ids, np.uint64), np.fromiter(map(len, words), np.int64, len(words))


def _characters(text: str) -> Words:
    codes_C, classes_C, _ = _characters_of(text)
    ids_U = codes_C[classes_C != _SPACE].astype(np.uint64)
    return ids_U, np.ones(len(ids_U), np.int64)


def _hashes(ids_U: npt.NDArray[np.uint64], scale: int, end: int) -> Iterator[npt.NDArray[np.uint64]]:
    """For n = 2, 3 to `end` - 1: a hash of 64 bits for the n * scale units from each start."""
    hashes = ids_U * _FACTOR
    for length in range(2, (end - 1) * scale + 1):
        hashes = (hashes[:-1] ^ (hashes[:-1] >> np.uint64(29))) * _FACTOR + ids_U[length - 1 :]
        if length % scale == 0 and length >= 2 * scale:
            yield hashes


def _top_share(hashes: npt.NDArray[np.uint64], ends_U1: npt.NDArray[np.int64], limit: float) -> float:
    """Characters in all occurrences of the n-gram that has most of them, as a share; 0 where it is surely below."""
    n = len(ends_U1) - len(hashes)
    sizes = ends_U1[n:] - ends_U1[:-n]
    # Hashes that share a bucket are counted together: too many, never too few.
    counts = np.bincount(_buckets(hashes, 1))
    if int(counts.max()) * int(sizes.max()) <= limit * int(ends_U1[-1]):
        return 0.0
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    return int(np.max(counts * sizes[first] * (counts > 1))) / int(ends_U1[-1])


def _repeated_share(hashes: npt.NDArray[Any], sizes_U: Sizes, units: int) -> float:
    """Characters covered by n-grams that occurred before, each character counted once, as a share."""
    n, reach = units - len(hashes) + 1, 1
    covered_U = np.zeros(units, np.bool_)
    covered_U[: len(hashes)] = _occurred_before(hashes)
    while reach < n:
        step = min(reach, n - reach)
        covered_U[step:] |= covered_U[:-step]
        reach += step
    if sizes_U is None:
        return int(np.count_nonzero(covered_U)) / units
    return int((sizes_U * covered_U).sum()) / int(sizes_U.sum())


def _occurred_before(hashes: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Whether each hash stood at an earlier place. A table of first places settles all but a few, a sort those."""
    buckets, places = _buckets(hashes, 2), np.arange(len(hashes), dtype=np.int32)
    table = np.empty(1 << _bucket_bits(len(hashes), 2), np.int32)
    table[buckets[::-1]] = places[::-1]
    first = table[buckets]
    later: npt.NDArray[np.bool_] = first != places
    repeated = np.flatnonzero(later)
    open_places = repeated[hashes[first[repeated]] != hashes[repeated]]  # the first of their bucket is another n-gram
    if open_places.size:
        _, earliest = np.unique(hashes[open_places], return_index=True)
        later[open_places[earliest]] = False
    return later


def _bucket_bits(count: int, spare_bits: int) -> int:
    return count.bit_length() + spare_bits


def _buckets(hashes: npt.NDArray[Any], spare_bits: int) -> npt.NDArray[np.int64]:
    """The upper bits of each hash, as many as number the hashes and `spare_bits` more."""
    bits = _bucket_bits(len(hashes), spare_bits)
    if hashes.dtype == np.uint32:
        return ((hashes * _FACTOR_32) >> np.uint32(max(0, 32 - bits))).astype(np.int64)
    return ((hashes * _FACTOR) >> np.uint64(64 - bits)).astype(np.int64)
