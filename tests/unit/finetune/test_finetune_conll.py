"""CoNLL files in every scheme, and the lines that break them."""

import pytest

from train.errors import DataError
from train.finetune.conll import read_conll

# Two entities of one type side by side: where the schemes differ.
WORDS = ["U.N.", "Ada", "Li", "Bob", "met", "Eve", "in", "Oslo"]
BIO = ["B-ORG", "B-PER", "I-PER", "B-PER", "O", "B-PER", "O", "B-LOC"]
SCHEMES = {
    "bio": BIO,
    "iob1": ["I-ORG", "I-PER", "I-PER", "B-PER", "O", "I-PER", "O", "I-LOC"],
    "bioes": ["S-ORG", "B-PER", "E-PER", "S-PER", "O", "S-PER", "O", "S-LOC"],
}


def lines(tags, separator="\t", middle=()):
    return "".join(separator.join((word, *middle, tag)) + "\n" for word, tag in zip(WORDS, tags, strict=True))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("separator", ["\t", " ", "   "])
def test_every_scheme_and_separator_becomes_the_same_bio(scheme, separator, tmp_path):
    """Reference: the tags in BIO. The scheme is found in the tags."""
    path = tmp_path / "file.conll"
    text = lines(SCHEMES[scheme], separator, ("NN", "x"))
    path.write_bytes(("\ufeff-DOCSTART- -X- O O\n\n" + text + "\n\n" + text).replace("\n", "\r\n").encode())
    found = read_conll(path)
    assert found.scheme == scheme and found.repaired == 0
    assert [(s.words, s.tags) for s in found.sentences] == [(WORDS, BIO)] * 2
    assert found.sentences[0].places[1] == f"{path}:4" and found.sentences[1].places[0] == f"{path}:13"


def test_a_word_may_be_a_space_of_another_script(tmp_path):
    """Words of Chinese files are characters, the wide space among them; only tabs and ASCII spaces part columns."""
    (tmp_path / "f.conll").write_text("我\tO\n\u3000\tO\n\x01\tO\n北\tB-LOC\n京\tI-LOC\n")
    assert read_conll(tmp_path / "f.conll").sentences[0].words == ["我", "\u3000", "\x01", "北", "京"]


BROKEN = [
    ("a\tB-PER\nb\tO\nc\tI-PER\n", 3, "I-PER follows no B-PER", ["B-PER", "O", "B-PER"]),
    ("a\tB-PER\nb\tI-LOC\n", 2, "I-LOC follows no B-LOC", ["B-PER", "B-LOC"]),
    ("a\tB-PER\n\nb\tI-PER\n", 3, "I-PER follows no B-PER", ["B-PER", "B-PER"]),
    ("a\tS-PER\nb\tE-PER\n", 2, "E-PER follows no B-PER", ["B-PER", "B-PER"]),
    ("a\tB-PER\nb\n", 2, "has a word and no tag", ["B-PER", "O"]),
]


@pytest.mark.parametrize(("text", "line", "said", "repaired"), BROKEN)
def test_tags_that_break_the_scheme_are_named_or_repaired(text, line, said, repaired, tmp_path):
    """Reference: conlleval, which lets such an I- begin an entity."""
    path = tmp_path / "file.conll"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_conll(path)
    assert f"{path}:{line}: " in str(error.value) and said in str(error.value)
    found = read_conll(path, repair=True)
    assert [tag for sentence in found.sentences for tag in sentence.tags] == repaired and found.repaired == 1


def test_what_is_no_tag_is_never_repaired(tmp_path):
    """A wrong column would otherwise become a file without entities."""
    (tmp_path / "f.conll").write_text("a\tB-PER\nb\tNOUN\n")
    for repair in (False, True):
        with pytest.raises(DataError, match=r"f\.conll:2: 'NOUN' is no tag"):
            read_conll(tmp_path / "f.conll", repair=repair)


def test_a_file_without_sentences_is_one_line(tmp_path):
    (tmp_path / "f.conll").write_text("-DOCSTART- O\n\n")
    with pytest.raises(DataError, match="no sentences"):
        read_conll(tmp_path / "f.conll")
