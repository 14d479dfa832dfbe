"""The corpus of the standard library: whole documents, nothing run, the same bytes for any number of workers."""

from data_pipeline.stdlib_docs import documents_of_source, write_stdlib_docs

SOURCE = b'''"""What the module is for, said in a text
that is long enough to stand alone as one document of the corpus."""
raise SystemExit("never run")

class Thing:
    """A thing, described at some length so that it becomes a document of its own and not a part of others."""

    def act(self):
        """Act."""
        def inner():
            """Deep inside."""

def first():
    """Short one, joined with others."""

def second():
    """Short two."""

def bare():
    return 1
'''


def test_a_class_is_one_document_and_short_docstrings_are_joined():
    """Reference: the documents written out."""
    assert documents_of_source("things", SOURCE) == [
        ("things", SOURCE.decode().split('"""')[1]),
        (
            "things.Thing",
            "A thing, described at some length so that it becomes a document of its own and not a part of others."
            "\n\nAct.\n\nDeep inside.",
        ),
        ("things.first", "Short one, joined with others.\n\nShort two."),
    ]


def test_a_source_that_does_not_parse_gives_nothing():
    """The library keeps such files: bad encodings, another syntax, NUL bytes."""
    for source in (b"def", b"# -*- coding: nonsense -*-\n'''x'''", b"\x00", b"'''\xff'''"):
        assert documents_of_source("broken", source) == []


def test_the_bytes_do_not_depend_on_the_workers(tmp_path):
    """Reference: one worker."""
    assert write_stdlib_docs(tmp_path / "one.jsonl", 1) == write_stdlib_docs(tmp_path / "two.jsonl", 2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
