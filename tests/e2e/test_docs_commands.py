"""The commands that README and docs name can be given as they stand there, and do what they say."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import zstandard
from docs_commands import ALL, ROOT, meant
from e2e_commands import command

from data_pipeline.__main__ import _parser as pipeline_parser
from train.__main__ import _options

SENTENCES = [f"the {('import', 'return')[n % 2]} statement of class number {n}" for n in range(32)]
SMALL = [
    "run.steps=4",
    "data.sequence_length=64",
    "model.encoder.hidden_size=32",
    "model.encoder.num_hidden_layers=1",
    "model.encoder.num_attention_heads=2",
    "model.encoder.intermediate_size=64",
    "batch.global_batch_size=8",
    "batch.micro_batch_size=4",
    "schedule.warmup_steps=1",
    "validation.interval_steps=2",
    "checkpoint.interval_steps=2",
]
DECODER = [
    "model.decoder.num_hidden_layers=1",
    *(f"model.decoder.{name}=null" for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
]
OF_RUN = {"runs/bert-base", "runs/a", "runs/b", "runs/bert"}
OF_MODEL = {"english", "chinese", "english-model", "chinese-model"}
LEFT_OUT = {
    "evaluate": "GLUE is not here; test_evaluate.py",
    "launch": "starts processes; test_stopping.py",
    "submit": "needs SLURM; test_slurm.py",
    "pretrain CONFIG.yaml": "under srun; test_slurm.py",
    "profile.start_step": "needs 100 steps; tests/unit/engine",
    "--find-micro-batch": "tries many sizes; tests/unit/engine",
}


@pytest.mark.parametrize(("page", "module", "words"), ALL, ids=lambda value: str(value)[:60])
def test_a_command_of_the_docs_is_one_of_the_parser(page, module, words):
    """Reference: the parsers themselves, which end the process where they know an option or a command not."""
    parse = _options if module == "train" else pipeline_parser().parse_args
    assert parse(shlex.split(meant(words)))


def test_the_pages_name_commands():
    assert len(ALL) > 40 and {"node.md", "README.md", "fine-tuning.md"} <= {page for page, *_ in ALL}


def test_a_folder_with_nothing_but_text_gets_through_all_pages(shards, tmp_path):
    """Every command of README, then those of the other pages, in one folder: exit code 0, and a file for each promise.

    Reference: the pages. Small models and data, and one process where the page starts several.
    """
    a_users_folder(tmp_path, shards.parent / "text.jsonl")
    wanted = {(module, words): None for _, module, words in ALL if not any(name in words for name in LEFT_OUT)}
    assert len(wanted) > 30
    for module, words in wanted:
        done = as_given(module, words, tmp_path)
        assert done.returncode == 0, f"{words}: {done.returncode}: {done.stdout}{done.stderr}"
    for promised in ("shards/manifest.json", "runs/mae-base/report.html", "curves.png", "model/config.json"):
        assert (tmp_path / promised).stat().st_size > 0
    assert (tmp_path / "sentiment" / "results.json").exists() and (tmp_path / "en-zh" / "target_tokenizer").is_dir()


def as_given(module: str, words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command, with small sizes where a model is trained; other runs and models that it names are copies."""
    given = shlex.split(meant(words))
    if given[0] == "pretrain":
        given += [*SMALL, *(DECODER if "mae-base" in given[1] else [])]
    copies = [folder / word for word in given if word in OF_RUN | OF_MODEL and not (folder / word).exists()]
    for copy in copies:
        shutil.copytree(folder / ("runs/mae-base" if str(copy.relative_to(folder)) in OF_RUN else "model"), copy)
    if "--output" in given and given[0] in ("export", "average", "checkpoint", "finetune"):
        # Each page begins in an empty folder.
        shutil.rmtree(folder / given[given.index("--output") + 1], ignore_errors=True)
    done = command(module, *given, folder=folder)
    for copy in copies:
        shutil.rmtree(copy)
    return done


def a_users_folder(folder: Path, text: Path) -> None:
    """What the pages take for granted, by the names they give it."""
    for name in ("configs", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "corpus").mkdir()
    (folder / "corpus" / "text.jsonl.zst").write_bytes(zstandard.compress(text.read_bytes()))
    rows = [{"text": s, "label": "import" if "import" in s else "other"} for s in SENTENCES]
    pairs = [{"a": s, "b": SENTENCES[n // 2], "score": n % 5} for n, s in enumerate(SENTENCES)]
    for name in ("sst2", "cls-sst2"):
        for split in ("train", "dev", "test"):
            _lines(folder / "tasks" / name / f"{split}.jsonl", rows)
    for split in ("train", "dev", "test"):
        _lines(folder / f"{split}.jsonl", rows)
    for name in ("stsb/dev", "sim-stsb/en-dev"):
        _lines(folder / "tasks" / f"{name}.jsonl", pairs)
    for name in ("cranfield", "ir-cranfield"):
        _a_retrieval_set(folder / "tasks" / name)
    for name in ("squad-train", "squad-dev", "train", "dev"):
        (folder / f"{name}.json").write_text(json.dumps(_questions()))
    (folder / "data").mkdir()
    for split in ("train", "dev", "test"):
        (folder / "data" / f"{split}.en").write_text("\n".join(SENTENCES) + "\n")
        (folder / "data" / f"{split}.zh").write_text("\n".join(reversed(SENTENCES)) + "\n")
    (folder / "texts.txt").write_text("\n".join(SENTENCES[:3]) + "\n")
    _lines(folder / "rows.jsonl", rows[:3])


def _lines(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _a_retrieval_set(folder: Path) -> None:
    _lines(folder / "corpus.jsonl", [{"_id": str(n), "title": "", "text": s} for n, s in enumerate(SENTENCES)])
    _lines(folder / "queries.jsonl", [{"_id": "q", "text": SENTENCES[3]}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq\t3\t1\n")


def _questions() -> dict:
    context = "The book was written by Ada in 1843."
    asked = [
        {"id": str(n), "question": "Who wrote it?", "answers": [{"text": "Ada", "answer_start": context.index("Ada")}]}
        for n in range(8)
    ]
    return {"data": [{"title": "a book", "paragraphs": [{"context": context, "qas": asked}]}]}
