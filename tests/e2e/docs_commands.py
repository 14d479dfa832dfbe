"""The commands that README and docs/ name, in their order."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULE = re.compile(r"-m (train|data_pipeline) (.*)")
OPTIONAL = re.compile(r" \[(?:-|key)[^\]]*\]")

STANDS_FOR = {
    "RUN RUN": "runs/a runs/b",
    "RUN": "runs/mae-base",
    "MODEL": "model",
    "A": "model",
    "B": "model",
    "TASK": "classification",
    "--model DIR": "--model sentiment",
    "--train F": "--train train.jsonl",
    "--validation F": "--validation dev.jsonl",
    "--output DIR": "--output some-output",
}


def commands(page: Path) -> list[tuple[str, str]]:
    """(module, words) of the commands in blocks of code, without what is optional; those with "..." are none."""
    text = re.sub(r"\\\n\s*", "", page.read_text())
    lines = [OPTIONAL.sub("", line) for line in text.splitlines() if line.startswith("    ")]
    found = [match.groups() for line in lines if (match := MODULE.search(re.split(r"\s{2,}#|\s{4,}", line.strip())[0]))]
    return [(module, words) for module, words in found if "..." not in words]


ALL = [(page.name, *command) for page in PAGES for command in commands(page)]


def meant(words: str) -> str:
    """The words of a command with names for what they leave open."""
    for name, chosen in STANDS_FOR.items():
        words = f" {words} ".replace(f" {name} ", f" {chosen} ").strip()
    return words
