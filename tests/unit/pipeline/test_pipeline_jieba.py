"""jieba with a memory finds the words of rjieba, in any text and whatever it met before."""

import io
import json
import random
import sys
from importlib.metadata import PackageNotFoundError
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipeline import jieba_words, remembered, segment
from data_pipeline.errors import UserError
from data_pipeline.ideographs import IDEOGRAPH
from data_pipeline.jieba_words import open_jieba
from data_pipeline.remembered import Pieces, mark_words, new_memory, word_begins

PRETRAIN = Path(__file__).resolve().parents[3].parent / "shared" / "data" / "pretrain"
rjieba = pytest.importorskip("rjieba")


def words(text, begins_C):
    """(start, end) of the words with an ideograph; only these are words of the segmenter's."""
    starts = [*np.flatnonzero(begins_C).tolist(), len(text)]
    return [(a, b) for a, b in pairwise(starts) if IDEOGRAPH.search(text, a, b)]


def check(begins, text):
    ours, theirs = words(text, begins(text)), words(text, word_begins(rjieba.cut(text)))
    assert ours == theirs, [text[max(0, a - 5) : b + 5] for a, b in set(ours) ^ set(theirs)][:3]
    return len(theirs)


def dictionary():
    return [line.split(" ")[0] for line in jieba_words._dictionary().splitlines()]


def random_texts(count, seed):
    """Mixtures of words of the dictionary, their halves, words with Latin letters, any characters of any block."""
    rng = random.Random(seed)
    known = dictionary()
    mixed = [word for word in known if not all("\u4e00" <= character <= "\u9fff" for character in word)]
    blocks = [(1, 0x250), (1, 0x3100), (1, 0x10000), (0x3400, 0x4DC0), (0x4E00, 0xA000), (0xF900, 0xFB00)]
    blocks += [(0x20000, 0x2FA20), (1, sys.maxunicode)]

    def any_character():
        number = rng.randrange(*rng.choice(blocks))
        return "中" if 0xD800 <= number < 0xE000 else chr(number)

    def part():
        word = rng.choice(known)
        return rng.choice(
            (word, word[:1], word[-1:], rng.choice(mixed), any_character(), rng.choice("abXY01+#&._%- \n"))
        )

    return ["".join(part() for _ in range(rng.randint(0, 40))) for _ in range(count)]


def documents(name, step=1):
    path = PRETRAIN / name / "docs.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs ../shared/data/pretrain")
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"] for number, line in enumerate(lines) if number % step == 0]


def test_words_of_any_text_are_those_of_rjieba():
    """Reference: rjieba on the whole text, by one memory that sees all texts; every word of the dictionary once."""
    begins = open_jieba()
    for text in [*random_texts(2_000, 0), "", "中", "a", "\n" * 3, "中" * 300, "甲乙丙丁" * 100, "ALL加到结果集中"]:
        check(begins, text)
    check(begins, "\n".join(dictionary()))


@pytest.mark.parametrize("name", ["zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
def test_words_of_real_documents_are_those_of_rjieba(name):
    """Reference: rjieba."""
    begins = open_jieba()
    assert sum(check(begins, text) for text in documents(name, 13)) > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
def test_words_of_every_real_document_are_those_of_rjieba(name):
    """Reference: rjieba; then on each document for the second time, from memory."""
    begins = open_jieba()
    for text in 2 * documents(name):
        check(begins, text)


def test_every_pair_and_triple_of_the_dictionary_is_known():
    """Reference: a loop over its words."""
    known = jieba_words._neighbours(jieba_words._dictionary())
    for word in random.Random(0).sample(dictionary(), 5_000):
        codes = np.array([ord(character) for character in word], np.uint32)
        assert known.pairs[jieba_words._hash(codes[:-1], codes[1:])].all(), word
        assert known.triples[jieba_words._hash(codes[:-2], codes[1:-1], codes[2:])].all(), word
        if len(word) == 2:
            assert known.pairs[jieba_words._hash(codes[:1], codes[1:])] == jieba_words._WORD


@pytest.mark.parametrize("slot_bits", [1, 4, 18])
def test_what_a_memory_holds_changes_nothing(monkeypatch, slot_bits):
    """Reference: the cut of each piece alone; memories too small for a text, pieces too long to be remembered."""
    monkeypatch.setattr(remembered, "_SLOT_BITS", slot_bits)
    rng = random.Random(slot_bits)

    def cut(text):
        """Words end before "a" and after "b"; the separator stands alone."""
        return list(filter(None, text.replace("a", "|a").replace("b", "b|").replace("\n", "|\n|").split("|")))

    memory = new_memory(cut)
    for _ in range(300):
        lengths = rng.choices((1, 2, 3, 5, 63, 64, 65, 200), (9, 9, 9, 9, 1, 1, 1, 1), k=rng.randint(0, 12))
        text = "".join(rng.choices("abcd", k=sum(lengths) + 5))
        ends = np.cumsum(lengths, dtype=np.intp)
        starts = ends - np.array(lengths, np.intp)
        begins_C = np.zeros(len(text), np.bool_)
        codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        mark_words(begins_C, Pieces(text, codes_C, starts, ends), memory)
        pieces = [text[a:b] for a, b in zip(starts, ends, strict=True)]
        expected = [begin for piece in pieces for begin in word_begins(cut(piece)).tolist()]
        assert begins_C.tolist() == expected + [False] * 5


def test_what_was_met_is_not_cut_again():
    """Reference: the calls of the cut; equal pieces of one text are cut once, too."""
    seen = []

    def cut(text):
        seen.append(text)
        return list(text)

    memory = new_memory(cut)
    text = "中国人中国人"
    codes_C = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    pieces = Pieces(text, codes_C, np.array([0, 3]), np.array([3, 6]))
    for _ in range(2):
        mark_words(np.zeros(6, np.bool_), pieces, memory)
    assert seen == ["中国人\n"]


def test_a_missing_package_is_named(monkeypatch):
    """Before any work: where the settings of the build are made, and where the segmenter is opened."""

    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(segment, "version", missing)
    monkeypatch.setattr(jieba_words, "distribution", missing)
    with pytest.raises(UserError, match="rjieba and jieba"):
        segment.describe_segmenter("jieba")
    with pytest.raises(UserError, match="rjieba and jieba"):
        open_jieba()
