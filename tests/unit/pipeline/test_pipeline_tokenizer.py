"""Tokenizers: the same texts give the same bytes, transformers opens them, a vocab.txt is BERT's tokenizer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from data_pipeline.errors import DataError, UserError
from data_pipeline.tokenizer import SPECIAL_TOKENS, load_tokenizer, save_tokenizer, train_wordpiece

ROOT = Path(__file__).resolve().parents[3]
VOCABULARIES = ROOT.parent / "shared" / "data" / "vocab"
CORPUS = [
    f"Running runners ran {word}ing to the café, 深度学习 {word}s [MASK] {word}"
    for word in ("abc", "walk", "talk", "jump")
] * 20


def train(size=300, cased=False):
    return train_wordpiece(lambda: CORPUS, size, 2, cased)


def test_training_gives_the_same_bytes_in_every_process(tmp_path):
    """Reference: training in processes with other hash seeds; hash tables inside the trainer differ in each."""
    code = (
        "import sys, json; from data_pipeline.tokenizer import train_wordpiece;"
        f"print(train_wordpiece(lambda: {CORPUS!r}, 300, 2, False).checksum)"
    )
    checksums = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONHASHSEED": str(seed)}, capture_output=True
        ).stdout
        for seed in range(3)
    }
    assert checksums == {train().checksum.encode() + b"\n"}


@pytest.mark.parametrize("cased", [False, True])
def test_transformers_opens_the_folder_as_a_fast_bert_tokenizer(tmp_path, cased):
    """Reference: the ids of tokenizers itself, with [CLS] and [SEP] around."""
    trained = train(cased=cased)
    save_tokenizer(trained, tmp_path / "tokenizer")
    opened = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert opened.is_fast
    assert {name: getattr(opened, f"{name}_token_id") for name in SPECIAL_TOKENS} == trained.special_ids
    assert trained.special_ids == {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
    assert opened.model_max_length == 512
    assert len(opened) == len(trained.vocabulary)
    reference = Tokenizer.from_str(trained.tokenizer_json)
    text = "Running to the CAFÉ, 深度学习!"
    assert opened(text)["input_ids"] == reference.encode(text).ids
    assert opened("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert opened.convert_ids_to_tokens(opened("[MASK]", add_special_tokens=False)["input_ids"]) == ["[MASK]"]


def test_chinese_characters_are_tokens_of_their_own():
    """And no vocabulary is spent on continuing forms of them."""
    trained = train()
    tokens = Tokenizer.from_str(trained.tokenizer_json).encode("深度学习", add_special_tokens=False).tokens
    assert tokens == ["深", "度", "学", "习"]
    assert not {"##度", "##学", "##习", "##,"} & set(trained.vocabulary)


def test_the_vocabulary_has_the_size_asked_for_and_the_rare_is_left_out():
    """A character met once is no token; an exhausted corpus gives fewer tokens, never more."""
    texts = [*CORPUS, "Ω"]
    for size in (64, 100, 10_000):
        vocabulary = train_wordpiece(lambda: texts, size, 2, False).vocabulary
        assert len(vocabulary) == len(set(vocabulary)) <= size
        assert "Ω".lower() not in vocabulary
        assert "running" in vocabulary or size < 10_000


def test_a_vocabulary_that_cannot_be_learnt_is_refused():
    """Too small a size; no text."""
    with pytest.raises(UserError, match="--vocab-size 10"):
        train(size=10)
    with pytest.raises(DataError, match="too little text"):
        train_wordpiece(lambda: [" ", ""], 100, 2, False)


def test_what_is_no_bert_tokenizer_is_refused(tmp_path):
    """Every message names the path and what is wrong."""
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "tokenizer.json").write_text("{")
    bpe = json.loads(Tokenizer.from_str(train().tokenizer_json).to_str())
    bpe["model"] = {"type": "BPE", "vocab": {}, "merges": []}
    (tmp_path / "bpe").mkdir()
    (tmp_path / "bpe" / "tokenizer.json").write_text(json.dumps(bpe))
    (tmp_path / "empty").mkdir()
    for name, reason in (
        ("vocab.txt", r"no \[PAD\] \[UNK\]"),
        ("broken", "is no tokenizer"),
        ("bpe", "BPE tokenizer; only WordPiece"),
        ("empty", "neither a folder"),
        ("nowhere", "no such tokenizer"),
    ):
        with pytest.raises(UserError, match=reason) as caught:
            load_tokenizer(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)


def test_a_folder_that_holds_something_is_not_replaced(tmp_path):
    """Training hours are not overwritten; what a killed process left half-written is."""
    (tmp_path / "tokenizer.partial").mkdir()
    (tmp_path / "tokenizer.partial" / "tokenizer.json").write_text("half")
    save_tokenizer(train(), tmp_path / "tokenizer")
    with pytest.raises(UserError, match="exists already"):
        save_tokenizer(train(), tmp_path / "tokenizer")
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize("name", ["bert-base-uncased", "bert-base-chinese"])
def test_a_vocab_txt_alone_is_the_same_tokenizer(name, tmp_path):
    """Reference: the tokenizer.json that belongs to it; on Chinese only lower-case text, for which both agree."""
    folder = VOCABULARIES / name
    if not folder.is_dir():
        pytest.skip("needs ../shared/data/vocab")
    from_json, from_txt = load_tokenizer(folder), load_tokenizer(folder / "vocab.txt")
    assert from_json.vocabulary == from_txt.vocabulary
    assert from_json.special_ids == from_txt.special_ids
    text = "the café of 中国, naïve tokenizations! [MASK] ½ 🙂 " + "x" * 101
    encoded = [Tokenizer.from_str(tokenizer.tokenizer_json).encode(text).ids for tokenizer in (from_json, from_txt)]
    if name == "bert-base-uncased":
        assert encoded[0] == encoded[1]
    save_tokenizer(from_json, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(tmp_path / "copy")(text)["input_ids"] == encoded[0]


def test_capital_letters_in_a_vocab_txt_mean_a_cased_tokenizer(tmp_path):
    """The file alone does not say it; tokenizer_config.json beside it has the last word."""
    (tmp_path / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS.values(), "Paris", "paris"]))
    tokenizer = Tokenizer.from_str(load_tokenizer(tmp_path).tokenizer_json)
    assert tokenizer.encode("Paris", add_special_tokens=False).tokens == ["Paris"]
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    tokenizer = Tokenizer.from_str(load_tokenizer(tmp_path).tokenizer_json)
    assert tokenizer.encode("Paris", add_special_tokens=False).tokens == ["paris"]
