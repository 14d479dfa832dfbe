"""The command line: one clear line and the right exit code for every mistake, never a traceback."""

import json

import pytest

from data_pipeline.__main__ import main


@pytest.fixture
def data_set(tmp_path, build_set, texts):
    return build_set(texts[:20])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "required"),
        (["biuld"], 2, "biuld"),
        (["build", "--output", "X"], 2, "--tokenizer"),
        (["build", "--output", "X", "--tokenizer", "{vocab}"], 2, "give --input PATH or --source NAME=PATH"),
        (["build", "--output", "X", "--tokenizer", "{vocab}", "--source", "a="], 2, "--source a=: give NAME=PATH"),
        (["build", "--output", "X", "--tokenizer", "{vocab}", "--input", "a", "--filters", "x"], 2, "no filter 'x'"),
        (["build", "--output", "X", "--tokenizer", "{vocab}", "--max-digit-share", "2"], 2, "not a share from 0 to 1"),
        (["build", "--input", "none.jsonl", "--tokenizer", "{vocab}", "--output", "{tmp}/x"], 2, "none.jsonl"),
        (["build", "--input", "{vocab}/no", "--tokenizer", "{vocab}", "--output", "{tmp}/x"], 2, "no such file"),
        (["build", "--input", "{good}", "--tokenizer", "{tmp}/no", "--output", "{tmp}/x"], 2, "no such tokenizer"),
        (["build", "--input", "{good}", "--tokenizer", "{vocab}", "--output", "{good}"], 2, "cannot write"),
        (["build", "--input", "{good}", "--tokenizer", "{vocab}", "--output", "{good}/x"], 2, "cannot write"),
        (["build", "--input", "{empty}", "--tokenizer", "{vocab}", "--output", "{tmp}/x"], 3, "no document is left"),
        (["build", "--input", "{cut}", "--tokenizer", "{vocab}", "--output", "{tmp}/x"], 3, "cut.jsonl.gz"),
        (
            ["build", "--input", "{good}", "--tokenizer", "{vocab}", "--output", "{tmp}/x", "--text-field", "body"],
            3,
            "20 no field 'body'",
        ),
        (["build", "--input", "{good}", "--tokenizer", "{vocab}", "--output", "{tmp}/x", "--workers", "0"], 2, "1"),
        (
            [
                "build",
                "--input",
                "{good}",
                "--tokenizer",
                "{vocab}",
                "--output",
                "{tmp}/x",
                "--validation-fraction",
                "1",
            ],
            2,
            "--validation-fraction 1.0",
        ),
        (["tokenizer", "--input", "{good}", "--output", "{tmp}/t", "--vocab-size", "9"], 2, "--vocab-size 9"),
        (["tokenizer", "--input", "{empty}", "--output", "{tmp}/t"], 3, "too little text"),
        (["tokenizer", "--input", "{good}", "--output", "{set}"], 2, "exists already"),
        (["stdlib-docs", "--output", "{tmp}/no/such/folder.jsonl"], 2, "folder.jsonl: cannot write"),
        (["verify", "{tmp}/no"], 2, "no such folder"),
        (["verify", "{tmp}"], 2, "no manifest.json"),
        (["inspect", "{tmp}/no"], 2, "no such folder"),
        (["inspect", "{set}", "--documents", "-1"], 2, "'-1' is not a whole number"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(arguments, code, words, tmp_path, data_set, vocab_txt, capsys):
    """Through main(), which returns the code and lets no exception out."""
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    paths = {"tmp": tmp_path, "set": data_set, "vocab": vocab_txt, "good": tmp_path / "set.jsonl"}
    paths |= {"empty": tmp_path / "empty.txt", "cut": tmp_path / "cut.jsonl.gz"}
    assert main([argument.format(**paths) for argument in arguments]) == code
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert error.endswith("\n")


def test_a_process_ends_with_the_code_and_no_traceback(tmp_path, run_cli):
    """The same through the shell's door, `python -m`-like, for exit codes 2 and 3."""
    missing = run_cli("verify", tmp_path / "no")
    assert (missing.returncode, missing.stdout, missing.stderr.count("\n")) == (2, "", 1)
    (tmp_path / "manifest.json").write_text("{}")
    damaged = run_cli("verify", tmp_path)
    assert (damaged.returncode, damaged.stdout, damaged.stderr.count("\n")) == (3, "", 1)
    assert "no key 'format'" in damaged.stderr


def test_from_python_docs_to_inspected_shards(tmp_path, capsys):
    """The road of the demo: corpus, tokenizer, build, verify, inspect."""
    corpus, tokenizer, data = (str(tmp_path / name) for name in ("docs.jsonl", "tokenizer", "data"))
    assert main(["stdlib-docs", "--output", corpus, "--workers", "2"]) == 0
    assert main(["tokenizer", "--input", corpus, "--output", tokenizer, "--vocab-size", "4000"]) == 0
    build = ["build", "--input", corpus, "--tokenizer", tokenizer, "--output", data, "--workers", "2"]
    assert main([*build, "--validation-fraction", "0.05"]) == 0
    assert main(["verify", data]) == 0
    capsys.readouterr()
    assert main(["inspect", data, "--documents", "2"]) == 0
    shown = capsys.readouterr().out
    assert "Split validation: " in shown
    assert "--- document 1 ---" in shown
    assert "--- document 2 ---" not in shown
    documents = [json.loads(line) for line in (tmp_path / "docs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(documents) >= 3000
    assert sum(len(document["text"].encode()) for document in documents) >= 2_000_000
    assert len({document["text"] for document in documents}) == len(documents)
