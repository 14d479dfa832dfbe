"""Fast WordPiece: the ids and word positions of `tokenizers` itself, whatever the text."""

import functools
import io
import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_pipeline import wordpiece
from data_pipeline.characters import _table
from data_pipeline.clean import clean
from data_pipeline.tokenizer import load_tokenizer, open_tokenizer, train_wordpiece
from data_pipeline.wordpiece import WordPiece, why_slow

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
KINDS = ["bert-base-uncased", "bert-base-chinese", "ours-uncased", "ours-cased"]
CORPUS = ["The cat runs, the cats ran: running café İstanbul Straße ΑΣ ас 中国人的书 한국어 が #1 ## a_b"] * 3


@functools.cache
def tokenizer_json(kind):
    if kind.startswith("ours"):
        return train_wordpiece(lambda: CORPUS, 300, 1, kind == "ours-cased").tokenizer_json
    if not (DATA / "vocab" / kind).is_dir():
        pytest.skip("needs ../shared/data/vocab")
    return load_tokenizer(DATA / "vocab" / kind).tokenizer_json


@functools.cache
def both(kind):
    """(the slow obvious reference, ours with tokie)."""
    tokenizer = open_tokenizer(tokenizer_json(kind))
    if reason := why_slow(tokenizer):
        pytest.skip(reason)
    ours = WordPiece(tokenizer, fast=True)
    reference = Tokenizer.from_str(tokenizer_json(kind))
    reference.encode_special_tokens = True
    return reference, ours


def check(kind, texts):
    """Ids of all `texts`, and positions: those of the offsets of the tokens without ##."""
    reference, ours = both(kind)
    for text in texts:
        encoding = reference.encode(text, add_special_tokens=False)
        assert ours.ids(text).tolist() == encoding.ids, text[:200]
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        firsts = [start for token, (start, _) in pairs if not token.startswith("##")]
        assert ours.word_positions([text]).tolist() == firsts, text[:200]


def corpus_documents(name, step=1):
    path = DATA / "pretrain" / name / "docs.jsonl.zst"
    if not path.is_file():
        pytest.skip("needs ../shared/data/pretrain")
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"] for number, line in enumerate(lines) if number % step == 0]


def hostile_texts():
    folder = DATA / "hostile"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/hostile")
    texts = json.loads((folder / "naughty-strings" / "blns.json").read_text(encoding="utf-8"))
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        texts.append(path.read_bytes().decode(errors="replace"))
    return texts


def random_texts(count, seed):
    """Mixtures of proven characters, any characters, words, marks and special tokens."""
    rng = random.Random(seed)
    proven = [chr(c) for c in np.flatnonzero(_table())]
    words = [*CORPUS[0].split(), "[MASK]", "[CLS]", "[UNK]", "##s", "ß" * 101, "x" * 100, "中" * 20, "\u0301", "\u3099"]
    words += [
        "\u200b",
        "\ufe0f",
        "\0",
        "\x7f",
        "\xad",
        "\u2028",
        "\x85",
        "👩‍👩‍👧",
        "\U000e0001",
        " ",
        "\n",
        "\t",
        "\u3000",
    ]

    def any_character():
        number = rng.choice((rng.randrange(0x250), rng.randrange(0x3100), rng.randrange(sys.maxunicode + 1)))
        return chr(number) if not 0xD800 <= number < 0xE000 else "?"

    def part():
        return rng.choice((lambda: rng.choice(proven), any_character, lambda: rng.choice(words)))()

    pure = [lambda: rng.choice(proven), part]
    return ["".join(rng.choice(pure)() for _ in range(rng.randint(1, 30))) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_proven_character_is_treated_alike(kind):
    """Reference: tokenizers, on each of them at the start, inside, at the end of a word and alone."""
    characters = [chr(c) for c in np.flatnonzero(_table())]
    assert len(characters) > 90_000
    check(
        kind,
        ["".join(f"{c}a{c}b{c} {c} É{c}é{c}" for c in characters[i : i + 50]) for i in range(0, len(characters), 50)],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_random_strings(kind):
    """Reference: tokenizers, on 20,000 strings for the real vocabularies together with each of ours."""
    check(kind, random_texts(20_000, seed=KINDS.index(kind)))


@settings(max_examples=300, deadline=None)
@given(st.text(), st.sampled_from(KINDS))
def test_any_string(text, kind):
    """Reference: tokenizers."""
    check(kind, [text, f"中国 {text} the cat", text * 3])


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_texts(kind):
    """Reference: tokenizers, on naughty strings and files that are hardly UTF-8, raw and cleaned."""
    texts = hostile_texts()
    check(kind, texts + [clean(text) for text in texts if clean(text) != text])


@pytest.mark.parametrize(
    ("name", "step"),
    [("en-novels", 50), ("en-peps", 7), ("zh-javaguide", 7), ("zh-react-docs", 3), ("zh-tidb-docs", 11)],
)
@pytest.mark.parametrize("kind", KINDS[:2])
def test_real_documents(name, step, kind):
    """Reference: tokenizers, on some documents of each corpus."""
    check(kind, corpus_documents(name, step))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["en-novels", "en-peps", "zh-javaguide", "zh-react-docs", "zh-tidb-docs"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_real_document(name, kind):
    """Reference: tokenizers, on every document of each corpus."""
    check(kind, corpus_documents(name))


def test_pieces_of_long_texts_join_to_the_whole():
    """Reference: tokenizers; long lines without white space, odd characters at the cuts, no text at all."""
    rng = random.Random(0)
    texts = ["", " ", "\n" * 30_000, "a" * 30_000, "中" * 30_000, "é\u0301" * 15_000]
    for size in (1, 7, 300, 9_999, 20_000):
        texts += [
            "".join(rng.choices("ab,中é \n\u0301\u200b\t", (20, 2, 1, 3, 1, 5, 1, 1, 1, 1), k=size)) for _ in range(9)
        ]
    check("ours-cased", texts)


def test_a_literal_special_token_stays_text():
    """Reference: the brackets around the word."""
    for kind in ("ours-uncased", "ours-cased"):
        _, ours = both(kind)
        ids = ours.ids("[MASK] [CLS][SEP] [PAD] [UNK]")
        specials = load_tokenizer_specials(kind)
        assert not set(ids.tolist()) & specials


def load_tokenizer_specials(kind):
    vocabulary = Tokenizer.from_str(tokenizer_json(kind)).get_vocab()
    return {vocabulary[token] for token in ("[MASK]", "[CLS]", "[SEP]", "[PAD]")}


@pytest.mark.parametrize("change", ["added", "normalizer", "words"])
def test_another_kind_of_tokenizer_goes_the_slow_way_to_the_same_ids(change):
    """Reference: tokenizers with the same settings."""
    spec = json.loads(tokenizer_json("ours-uncased"))
    if change == "added":
        token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
        spec["added_tokens"].append({"id": len(spec["model"]["vocab"]), "content": "cats", **token})
    elif change == "normalizer":
        spec["normalizer"] = {"type": "Lowercase"}
    else:
        spec["model"]["max_input_chars_per_word"] = 3
    reference = Tokenizer.from_str(json.dumps(spec))
    reference.encode_special_tokens = True
    tokenizer = open_tokenizer(json.dumps(spec))
    assert why_slow(tokenizer)
    ours = WordPiece(tokenizer, fast=False)
    for text in [*CORPUS, "xcatsx 中国", ""]:
        encoding = reference.encode(text, add_special_tokens=False)
        assert ours.ids(text).tolist() == encoding.ids
        pairs = zip(encoding.tokens, encoding.offsets, strict=True)
        assert ours.word_positions([text]).tolist() == [a for token, (a, _) in pairs if not token.startswith("##")]


def test_without_tokie_the_ids_are_the_same(monkeypatch):
    """Reference: the ids with it; another version than the proven one is not trusted."""
    monkeypatch.setattr(wordpiece, "PROVEN_TOKIE", "0")
    tokenizer = open_tokenizer(tokenizer_json("ours-uncased"))
    assert "tokie" in why_slow(tokenizer)
    slow = WordPiece(tokenizer, fast=False)
    _, fast = both("ours-uncased")
    for text in random_texts(500, 9):
        assert slow.ids(text).tolist() == fast.ids(text).tolist()
        assert slow.word_positions([text]).tolist() == fast.word_positions([text]).tolist()
