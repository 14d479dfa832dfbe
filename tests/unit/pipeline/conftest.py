"""A small BERT vocabulary, small corpora and the command line, for the tests of the pipeline."""

import json
import random
import string
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
WORDS = ["the", "cat", "run", "##s", "##ning", "mat", "中", "国"]


@pytest.fixture(scope="session")
def vocab_txt(tmp_path_factory):
    """A vocab.txt of the special tokens, letters, digits, punctuation and a few words; path of the file."""
    letters = string.ascii_lowercase + string.digits
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *string.punctuation]
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    path.write_text("\n".join([*tokens, *WORDS]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def texts():
    """1,500 different short texts."""
    rng = random.Random(0)
    words = [
        *(w for w in WORDS if not w.startswith("#")),
        "running",
        "runs",
        "[MASK]",
        "[SEP]",
        "é",
        "x9",
        "!",
        "\n",
        "🙂",
    ]
    return [f"{number} " + " ".join(rng.choices(words, k=rng.randint(1, 40))) for number in range(1500)]


def write_jsonl(path, texts):
    """One object a line; the path."""
    content = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    if not path.exists() or path.read_text(encoding="utf-8") != content:  # written anew it were another input
        path.write_text(content, encoding="utf-8")
    return path


def run_cli(*arguments, limit_file_bytes=None, **options):
    """The command line in a process of its own: the finished process with exit code, stdout and stderr."""
    limit = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_file_bytes},) * 2);"
        if limit_file_bytes
        else ""
    )
    code = f"import sys; {limit} from data_pipeline.__main__ import main\nif __name__ == '__main__': sys.exit(main())"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture(name="run_cli")
def run_cli_fixture():
    """`run_cli` for the tests."""
    return run_cli


@pytest.fixture(name="write_jsonl")
def write_jsonl_fixture():
    """`write_jsonl` for the tests."""
    return write_jsonl


@pytest.fixture
def build_set(tmp_path, vocab_txt):
    """A function that builds a data set from texts through the public function; its folder."""
    from data_pipeline.build import BuildOptions, build
    from data_pipeline.parallel import open_workers

    def build_it(texts, name="set", workers=1, **changes):
        options = {
            "inputs": (write_jsonl(tmp_path / f"{name}.jsonl", texts),),
            "tokenizer": vocab_txt,
            "output": tmp_path / name,
            "text_field": "text",
            "validation_fraction": 0.0,
            "shard_blocks": 64,
            "source": "text",
            "restart": False,
        }
        with open_workers(workers) as opened:
            build(BuildOptions(**(options | changes)), opened)
        return tmp_path / name

    return build_it
