"""Contamination: a document that holds a passage of an evaluation file is found, and no other one."""

import csv
import gzip
import io
import itertools
import json
import random
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.contamination import evaluation_grams, evaluation_texts, lookup, shared_grams
from data_pipeline.errors import DataError, UserError

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
ALPHABET = ["a", "b", "The", "x9", "中", "国", "人", ", ", "\n", "。"]


def slow_units(text):
    """Words and Chinese characters of a text of ALPHABET, one after the other."""
    spaced = "".join(f" {character} " if character in "中国人" else character for character in text.lower())
    return "".join(" " if character in ",\n。" else character for character in spaced).split()


def slow_grams(text, n_words):
    """All n-grams: of n words, or of 2n units where the first one is Chinese."""
    found = slow_units(text)
    sizes = [2 * n_words if unit in "中国人" else n_words for unit in found]
    return {tuple(found[i : i + size]) for i, size in enumerate(sizes) if i + size <= len(found)}


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 4))
def test_a_text_is_found_when_and_only_when_it_shares_an_ngram(data, n_words):
    """Against sets of tuples; the measure is a passage of the text that has exactly a shared n-gram."""
    texts = st.lists(st.lists(st.sampled_from(ALPHABET), max_size=25).map(" ".join), max_size=5)
    evaluation, documents = data.draw(texts), data.draw(texts)
    known = {gram for text in evaluation for gram in slow_grams(text, n_words)}
    made = evaluation_grams(evaluation, n_words)
    assert (len(made.hashes), made.texts) == (len(known), len(evaluation))
    assert made.short == sum(not slow_grams(text, n_words) for text in evaluation)
    for text, shared in zip(documents, shared_grams(documents, lookup(made.hashes), n_words), strict=True):
        common = known & slow_grams(text, n_words)
        assert bool(shared) == bool(common)
        assert not shared or (shared in text and tuple(slow_units(shared)) in common)


def test_case_punctuation_and_line_breaks_hide_nothing():
    """A passage that was set anew is the same passage; twelve words of it are not enough."""
    words = [f"word{number}" for number in range(13)]
    known = lookup(evaluation_grams([" ".join(words)]).hashes)
    texts = ["Before: " + ",\n".join(words).upper() + "! after", " ".join(words[:12]), " ".join(words[1:])]
    assert [bool(shared) for shared in shared_grams(texts, known)] == [True, False, False]
    assert shared_grams(["..." + " ".join(words) + "..."], known) == [" ".join(words)]


def real_documents(name, count):
    """The first documents of a corpus."""
    path = DATA / "pretrain" / name / "docs.jsonl.zst"
    if not path.exists():
        pytest.skip("needs ../shared/data/pretrain")
    with path.open("rb") as file:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(file), encoding="utf-8")
        return [json.loads(line)["text"][:20_000] for line in itertools.islice(lines, count)]


@pytest.mark.parametrize(
    ("corpus", "file", "shortest"), [("en-peps", "xquad.en.json", 200), ("zh-tidb-docs", "xquad.zh.json", 90)]
)
def test_planted_passages_of_real_evaluation_files_are_found_and_nothing_else(corpus, file, shortest):
    """Half of the documents get a passage of a context of XQuAD: just these are found."""
    documents = real_documents(corpus, 60)
    contexts = [text for text in evaluation_texts(DATA / "tasks" / "qa-xquad" / file) if len(text) > 2 * shortest]
    rng = random.Random(0)
    for place in range(0, len(documents), 2):
        context = rng.choice(contexts)
        start, middle = rng.randrange(len(context) - shortest), rng.randrange(len(documents[place]))
        text = documents[place]
        documents[place] = f"{text[:middle]}\n{context[start : start + shortest]}\n{text[middle:]}"
    shared = shared_grams(documents, lookup(evaluation_grams(contexts).hashes))
    assert [bool(found) for found in shared] == [True, False] * (len(documents) // 2)


def test_every_real_evaluation_file_is_read():
    """Questions, sentences and labelled tokens of all tasks come out as texts."""
    tasks = DATA / "tasks"
    if not tasks.exists():
        pytest.skip("needs ../shared/data/tasks")
    texts = set(evaluation_texts(tasks / "cls-sst2" / "dev.jsonl"))
    first = json.loads((tasks / "cls-sst2" / "dev.jsonl").read_text("utf-8").splitlines()[0])["text"]
    assert first in texts and len(texts) > 800
    parallel = (tasks / "mt-cmn-tatoeba" / "dev.zh").read_text("utf-8").splitlines()
    assert list(evaluation_texts(tasks / "mt-cmn-tatoeba" / "dev.zh")) == parallel
    sentences = list(evaluation_texts(tasks / "ner-wnut17" / "dev.conll"))
    assert len(sentences) > 900 and max(len(text.split()) for text in sentences) > 20
    query = next(evaluation_texts(tasks / "ir-cranfield" / "qrels" / "test.tsv"))
    assert query == "query-id"


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
def test_every_kind_of_file_gives_its_strings(tmp_path, compression):
    """The same strings written by the standard library in each format."""
    strings = ['one, "two"', "三\u2028个", "a b"]
    rows = io.StringIO()
    csv.writer(rows).writerow(strings)
    nested = {"key": strings[0], "number": 3, "inner": [{"deep": strings[1]}, None, True, [strings[2]]]}
    contents = {
        "file.json": json.dumps(nested, indent=1),
        "file.jsonl": json.dumps(nested) + "\n\n" + json.dumps({"nothing": 1}) + "\n",
        "file.csv": rows.getvalue(),
        "file.tsv": "\t".join(strings) + "\n",
        "file.txt": "\n".join(strings) + "\n",
        "file.zh": "\n".join(strings),
    }
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[compression]
    for name, content in contents.items():
        (tmp_path / (name + compression)).write_bytes(pack(content.encode()))
        assert list(evaluation_texts(tmp_path / (name + compression))) == strings, name


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b'{"text": "a"}\n{"text": \n'),
        ("broken.json", b"[1, 2"),
        ("deep.json", b"[" * 100_000),
        ("latin1.txt", "Gr\u00fc\u00dfe".encode("latin-1")),
        ("cut.txt.gz", gzip.compress(b"some text", mtime=0)[:-6]),
        ("cut.txt.zst", zstandard.ZstdCompressor().compress(b"some text" * 99)[:-6]),
        ("quote.csv", b'a,"b'),
        ("binary.txt", bytes(range(256)) * 9),
        ("empty.txt", b""),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    """One line with the name of the file, and the exit code of damaged data."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name) as caught:
        list(evaluation_texts(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_the_users_mistake(tmp_path):
    """And is named."""
    with pytest.raises(UserError, match=r"nothing\.jsonl"):
        list(evaluation_texts(tmp_path / "nothing.jsonl"))


def test_no_evaluation_texts_find_nothing():
    """An empty list is no error."""
    assert shared_grams(["some text " * 20], lookup(evaluation_grams([]).hashes)) == [""]
