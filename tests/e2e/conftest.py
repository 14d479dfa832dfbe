"""Real shards from real text, built by the real commands."""

import json
import pydoc_data.topics
from pathlib import Path

import pytest
from e2e_commands import TINY, command, warm_variables


@pytest.fixture(scope="session", autouse=True)
def variables_without_changes() -> None:
    """No test has set one yet."""
    warm_variables()


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Python's help topics, a paragraph a document, built by the real commands with held-out documents."""
    folder = tmp_path_factory.mktemp("data")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": p}) + "\n" for p in paragraphs))
    tokenizer = ["--input", folder / "text.jsonl", "--output", folder / "tokenizer", "--vocab-size", 600]
    done = command("data_pipeline", "tokenizer", *tokenizer)
    assert done.returncode == 0, done.stderr
    build = ["--input", folder / "text.jsonl", "--tokenizer", folder / "tokenizer", "--output", folder / "shards"]
    done = command("data_pipeline", "build", *build, "--validation-fraction", 0.05, "--workers", 1)
    assert done.returncode == 0, done.stderr
    return folder / "shards"


@pytest.fixture(scope="session")
def tiny(shards) -> list[str]:
    """The demo's configuration, smaller, on these shards."""
    return ["configs/demo.yaml", f"data.path={shards}", *TINY]
