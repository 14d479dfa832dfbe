"""CoNLL files: a word and its tag a line, sentences apart by empty lines; BIO, IOB1 and BIOES become BIO (IOB2)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from train.errors import DataError
from train.finetune.text_files import read_lines

_DOCUMENT = "-DOCSTART-"
# The last word of an entity and one that is alone, in BIOES and in its sisters BMES and BILOU.
_LONG_SCHEME = {"S": "B", "U": "B", "M": "I", "E": "I", "L": "I"}


class Sentence(NamedTuple):
    """Words and their tags in BIO; `places` says where each word stands ("train.conll:17")."""

    words: list[str]
    tags: list[str]
    places: list[str]


class Conll(NamedTuple):
    """What a file holds: its sentences, its scheme ("bio", "iob1" or "bioes"), and how many tags were repaired."""

    sentences: list[Sentence]
    scheme: str
    repaired: int


def read_conll(path: Path, scheme: str = "auto", *, repair: bool = False) -> Conll:
    """All sentences of a file: the word is the first column, the tag the last; columns are apart by tabs or spaces.

    Raises UserError where the file cannot be opened; DataError, with file and line, for a line without a tag, a tag
    that is none, and tags that break the scheme: I- without a B- of its type before it. With `repair` such an I-
    becomes B- and is counted, and a line without a tag gets O.
    """
    sentences, repaired = _sentences(path, repair)
    if not sentences:
        raise DataError(f"{path}: no sentences")
    found = _scheme(sentences) if scheme == "auto" else scheme
    for sentence in sentences:
        repaired += _to_bio(sentence, found, repair)
    return Conll(sentences, found, repaired)


def _sentences(path: Path, repair: bool) -> tuple[list[Sentence], int]:
    """With the tags as they are written."""
    sentences, current, repaired = [], Sentence([], [], []), 0
    for number, line in enumerate([*read_lines(path), ""], start=1):
        # A word may be a space that is none of ASCII's, so only tabs and spaces part columns.
        columns = line.split("\t") if "\t" in line else line.split(" ")
        columns = [column for column in columns if column]
        if not columns or columns[0] == _DOCUMENT:
            if current.words:
                sentences.append(current)
                current = Sentence([], [], [])
            continue
        place = f"{path}:{number}"
        if len(columns) < 2:
            if not repair:
                raise DataError(f"{place}: {line[:40]!r} has a word and no tag; --repair makes it O")
            columns, repaired = [*columns, "O"], repaired + 1
        for column, value in zip(current, (columns[0], columns[-1], place), strict=True):
            column.append(value)
    return sentences, repaired


def _split(tag: str, place: str) -> tuple[str, str]:
    """("B", "PER") of B-PER, ("O", "") of O. Raises DataError for anything else."""
    if tag == "O":
        return "O", ""
    letter, dash, kind = tag.partition("-")
    if letter not in ("B", "I", *_LONG_SCHEME) or not dash or not kind:
        raise DataError(f"{place}: {tag!r} is no tag: O, or B-, I- (E-, S-) and a type are")
    return letter, kind


def _scheme(sentences: Sequence[Sentence]) -> str:
    """BIOES where there is any of its letters; IOB1 where B- only parts an entity from one of its type before it."""
    letters: Counter[str] = Counter()
    for sentence in sentences:
        before = ("O", "")
        for tag, place in zip(sentence.tags, sentence.places, strict=True):
            letter, kind = _split(tag, place)
            letters[letter] += 1
            letters["begins by B"] += letter == "B" and before[1] != kind
            letters["begins by I"] += letter == "I" and before[1] != kind
            before = (letter, kind)
    if any(letters[letter] for letter in _LONG_SCHEME):
        return "bioes"
    return "iob1" if letters["begins by I"] and not letters["begins by B"] else "bio"


def _to_bio(sentence: Sentence, scheme: str, repair: bool) -> int:
    """Rewrite the tags of a sentence; the number of those that had to be repaired. Raises DataError."""
    repaired, before, ended = 0, "", False
    for index, (tag, place) in enumerate(zip(sentence.tags, sentence.places, strict=True)):
        letter, kind = _split(tag, place)
        short = _LONG_SCHEME.get(letter, letter)
        broken = short == "I" and (before != kind or ended)
        if broken and scheme != "iob1":
            if not repair:
                raise DataError(f"{place}: {tag} follows no B-{kind} or I-{kind}; --repair makes it B-{kind}")
            repaired += 1
        sentence.tags[index] = f"B-{kind}" if broken else f"{short}-{kind}" if kind else "O"
        before, ended = kind, letter in ("E", "L", "S", "U")
    return repaired
