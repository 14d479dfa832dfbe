"""Word starts: whole Chinese words of a segmenter, untouched alphabets; compared with a loop over offsets."""

import functools
import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from data_pipeline import encode
from data_pipeline.encode import TextEncoder
from data_pipeline.ideographs import IDEOGRAPH
from data_pipeline.remembered import word_begins
from data_pipeline.segment import describe_segmenter, open_segmenter
from data_pipeline.tokenizer import open_tokenizer, train_wordpiece
from data_pipeline.wordpiece import WordPiece, why_slow
from data_pipeline.words import join_segments, starting_ids

TEXTS = [
    "北京大学的学生在图书馆里学习自然语言处理技术。",
    "中华人民共和国国务院总理周恩来，1949年10月1日！",
    "用 Python3 写代码, don't panic: T恤和卡拉OK很好 AA制\u3000二〇〇八年",
    "Café naïve running runs\n中国\n\nthe cat's 猫 \u200b狗\u0301 [MASK]马",
    "𠀀𠀁 豈更 ㈠ 한국어 ひらがなカタカナ漢字かな交じり文 👩‍👩‍👧家庭",
    "升级到 3.11.2 版，C++11 与 a_b 的 x-1.5%，见 node.js 和 100% 覆盖",
    "\u0301中\u200b国\ufe0f人\xad民 a\u200bb中\x00国",
]


@functools.cache
def tokenizer_json():
    return train_wordpiece(lambda: TEXTS * 2, 400, 1, False).tokenizer_json


@pytest.fixture
def segment():
    """The words of rjieba."""
    return pytest.importorskip("rjieba").cut


@pytest.fixture
def begins(segment):
    """Where ours says that words begin."""
    return open_segmenter("jieba")


def slow_starts(text, segment, spec=None):
    """A token starts a word unless it has ## or its segment, with an ideograph, has the word before it too."""
    tokenizer = Tokenizer.from_str(spec or tokenizer_json())
    tokenizer.encode_special_tokens = True
    encoding = tokenizer.encode(text, add_special_tokens=False)
    words = segment(text)
    segment_of = [number for number, word in enumerate(words) for _ in word]
    starts, before = [], None
    for token, (first, _) in zip(encoding.tokens, encoding.offsets, strict=True):
        if token.startswith("##"):
            starts.append(False)
            continue
        number = segment_of[first]
        starts.append(number != before or not IDEOGRAPH.search(words[number]))
        before = number
    return encoding.ids, starts


@functools.cache
def opened():
    """WordPiece, on its fast road where there is one, and its vocabulary."""
    tokenizer = open_tokenizer(tokenizer_json())
    wordpiece = WordPiece(tokenizer, fast=not why_slow(tokenizer))
    return wordpiece, [tokenizer.id_to_token(number) for number in range(tokenizer.get_vocab_size())]


def ours(text, begins):
    wordpiece, vocabulary = opened()
    ids_t = wordpiece.ids(text)
    starts_t = starting_ids(vocabulary, "##")[ids_t]
    join_segments(text, begins, wordpiece.word_positions([text]), starts_t)
    return ids_t.tolist(), starts_t.tolist()


def random_texts(count, longest):
    rng = random.Random(count)
    characters = list("".join(TEXTS))
    return ["".join(rng.choices(characters, k=rng.randint(1, longest))) for _ in range(count)]


def test_words_are_those_of_the_segmenter(segment, begins):
    """Reference: the slow loop, on texts made to go wrong and random mixtures of their characters."""
    texts = [*TEXTS, *random_texts(600, 60), " ".join(random.Random(0).choices(TEXTS, k=400))]
    for text in texts:
        assert ours(text, begins) == slow_starts(text, segment), text[:100]


def test_words_of_any_length_are_whole():
    """Reference: a segmenter that says what is one word."""
    text = "我爱中华人民共和国，T恤 ok"
    segments = ["我", "爱", "中华人民共和国", "，", "T恤", " ", "ok"]
    _, starts = ours(text, lambda _: word_begins(segments))
    assert starts[:10] == [True, True, True, False, False, False, False, False, False, True]
    vocabulary = Tokenizer.from_str(tokenizer_json())
    tokens = vocabulary.encode("t", add_special_tokens=False).tokens
    assert starts[10 : 10 + len(tokens) + 1] == [True, *[False] * len(tokens)]


@pytest.mark.parametrize("kind", ["bert", "another"])
@pytest.mark.parametrize("together", [1, 100, 10**6])
def test_texts_together_have_the_words_of_each_alone(segment, monkeypatch, kind, together):
    """Reference: the slow loop for each, for groups of any size; empty texts and such without ideographs among them."""
    monkeypatch.setattr(encode, "_TOGETHER", together)
    spec = tokenizer_json() if kind == "bert" else tokenizer_json().replace('"BertPreTokenizer"', '"Whitespace"')
    texts = ["", *TEXTS, "no ideographs", "\n", *random_texts(60, 30), "", "ひらがな"]
    encoder = TextEncoder(spec, "jieba", fast=False)
    ids_P = [encoder.ids(text) for text in texts]
    starts_P = encoder.word_starts(texts, ids_P)
    assert len(starts_P) == len(texts)
    for text, ids_t, starts_t in zip(texts, ids_P, starts_P, strict=True):
        expected_ids, expected = slow_starts(text, segment, spec)
        assert (ids_t.tolist(), starts_t.tolist()) == (expected_ids, expected), text
        assert encoder.word_starts([text], [ids_t])[0].tolist() == expected


def test_a_text_without_ideographs_is_left_to_the_pieces():
    """Reference: the rule of the alphabets; the segmenter would cut Python3.11 and don't otherwise."""
    pytest.importorskip("rjieba")
    text = "don't use Python3.11 ひらがな 한국어"
    encoder = TextEncoder(tokenizer_json(), "jieba", fast=False)
    ids_t = encoder.ids(text)
    tokens = [Tokenizer.from_str(tokenizer_json()).id_to_token(int(number)) for number in ids_t]
    expected = [not token.startswith("##") for token in tokens]
    np.testing.assert_array_equal(encoder.word_starts([text], [ids_t])[0], expected)


def test_no_segmenter_leaves_every_ideograph_a_word(segment):
    """Reference: the ids, which are the same with and without; counts of words."""
    text = TEXTS[0]
    with_it, without = (TextEncoder(tokenizer_json(), name, fast=False) for name in ("jieba", "none"))
    ids_t = without.ids(text)
    np.testing.assert_array_equal(ids_t, with_it.ids(text))
    assert without.word_starts([text], [ids_t])[0].all()
    assert with_it.word_starts([text], [ids_t])[0].sum() == len(segment(text))


def test_the_manifest_names_the_segmenter_and_its_version(segment):
    """Another version may find other words."""
    assert describe_segmenter("none") == "none"
    name, package, version = describe_segmenter("jieba").split()
    assert (name, package) == ("jieba", "(rjieba")
    assert version[0].isdigit()
    assert TextEncoder(tokenizer_json(), "jieba", False).ids("中国").size
