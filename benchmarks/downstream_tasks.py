"""Tasks of benchmarks/downstream.py: their files, and how what has no split of its own is split."""

import json
from pathlib import Path

PRETRAINING = {"en": ["en-novels", "en-peps"], "zh": ["zh-javaguide", "zh-react-docs", "zh-tidb-docs"]}
KINDS = ("classification", "ner", "similarity", "qa", "translation")
_EPOCHS = {"classification": 2, "ner": 3, "similarity": 2, "qa": 2, "translation": 2}
_RATE = 1e-3  # narrow models learn with high rates; the same for both
_TATOEBA = {"en": ("en", "zh"), "zh": ("zh", "en")}


def prepare_tasks(tasks: Path, folder: Path, language: str) -> dict[str, dict]:
    """Entries of a suite by name, with paths relative to `folder`, into which the files are linked or written."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {"en": _english, "zh": _chinese}[language](tasks, folder)
    source, target = _TATOEBA[language]
    _link(tasks / "mt-cmn-tatoeba", folder / "tatoeba")
    found[f"tatoeba-{source}-{target}"] = _splits("translation", "tatoeba/train", "tatoeba/dev", "tatoeba/test") | {
        "source_language": source,
        "target_language": target,
        "num_beams": 2,
        "max_length": 64,
    }
    pairs = _splits("similarity", *(f"stsb/{language}-{part}.jsonl" for part in _PARTS)) | {"max_length": 64}
    found |= {f"sts-{language}": pairs, f"sts-{language}-cosine": pairs | {"method": "cosine"}}
    _link(tasks / "sim-stsb", folder / "stsb")
    return found


_PARTS = ("train", "dev", "test")


def _english(tasks: Path, folder: Path) -> dict[str, dict]:
    _link(tasks / "cls-sst2", folder / "sst2")
    _link(tasks / "ner-wnut17", folder / "wnut17")
    _split_articles(tasks / "qa-xquad" / "xquad.en.json", folder / "xquad", learned=8)
    return {
        "sst2": _splits("classification", *(f"sst2/{part}.jsonl" for part in _PARTS)),
        "wnut17": _splits("ner", *(f"wnut17/{part}.conll" for part in _PARTS)),
        "xquad-en": _splits("qa", *(f"xquad/{part}.json" for part in _PARTS)) | {"max_length": 256},
    }


def _chinese(tasks: Path, folder: Path) -> dict[str, dict]:
    _link(tasks / "cls-waimai10k", folder / "waimai10k")
    _link(tasks / "ner-weibo", folder / "weibo")
    _split_articles(tasks / "qa-cmrc2018" / "cmrc2018_dev.json", folder / "cmrc2018", learned=2)
    return {
        "waimai10k": _splits("classification", *(f"waimai10k/{part}.jsonl" for part in _PARTS)) | {"max_length": 64},
        "weibo": _splits("ner", *(f"weibo/{part}.conll" for part in _PARTS)) | {"repair": True},  # 14 tags break BIO
        "cmrc2018": _splits("qa", *(f"cmrc2018/{part}.json" for part in _PARTS)) | {"repair": True, "max_length": 256},
    }


def _splits(task: str, train: str, validation: str, test: str) -> dict:
    files = {"train": train, "validation": validation, "test": test}
    return {"task": task, **files, "epochs": _EPOCHS[task], "learning_rate": _RATE}


def _split_articles(file: Path, folder: Path, learned: int) -> None:
    """Of ten articles `learned` to learn from and two for the other parts: no paragraph lies on both sides."""
    folder.mkdir(exist_ok=True)
    articles = json.loads(file.read_text(encoding="utf-8"))["data"]
    parts = {
        "train": [article for i, article in enumerate(articles) if i % 10 < learned],
        "dev": [article for i, article in enumerate(articles) if i % 10 == 8],
        "test": [article for i, article in enumerate(articles) if i % 10 == 9],
    }
    for name, own in parts.items():
        (folder / f"{name}.json").write_text(json.dumps({"data": own}, ensure_ascii=False), encoding="utf-8")


def _link(source: Path, place: Path) -> None:
    if not place.exists():
        place.symlink_to(source.resolve())


def files_to_keep_out(tasks: Path, folder: Path, language: str) -> list[Path]:
    """What the pretraining must not have seen, in files that `build --decontaminate` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "en": ["cls-sst2/test.jsonl", "sim-stsb/en-test.jsonl", "mt-cmn-tatoeba/test.en", "qa-xquad/xquad.en.json"],
        "zh": ["cls-waimai10k/test.jsonl", "sim-stsb/zh-test.jsonl", "mt-cmn-tatoeba/test.zh"],
    }[language]
    names += {"en": ["ner-wnut17/test.conll"], "zh": ["ner-weibo/test.conll", "qa-cmrc2018/cmrc2018_dev.json"]}[
        language
    ]
    return [_as_text(tasks / name, folder) for name in names]


def texts_for_the_vocabulary(tasks: Path, folder: Path, language: str) -> list[Path]:
    """What the tasks' training splits say, beside the pretraining text: a vocabulary must know their characters."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {
        "en": ["cls-sst2/train.jsonl", "ner-wnut17/train.conll"],
        "zh": ["cls-waimai10k/train.jsonl", "ner-weibo/train.conll"],
    }[language]
    names += [f"sim-stsb/{language}-train.jsonl", f"mt-cmn-tatoeba/train.{language}"]
    return [_as_text(tasks / name, folder) for name in names]


def _as_text(file: Path, folder: Path) -> Path:
    """A text a line: CoNLL sentences joined, contexts and questions of SQuAD files, the strings of JSON lines."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        rows = [json.loads(line) for line in text.splitlines()]
        lines = [value.replace("\n", " ") for row in rows for value in row.values() if isinstance(value, str)]
    elif file.suffix == ".conll":
        between = " " if "wnut" in str(file) else ""
        sentences = text.strip().split("\n\n")
        lines = [between.join(line.split("\t")[0] for line in sentence.splitlines()) for sentence in sentences]
    elif file.suffix == ".json":
        paragraphs = [p for article in json.loads(text)["data"] for p in article["paragraphs"]]
        lines = [t.replace("\n", " ") for p in paragraphs for t in (p["context"], *(q["question"] for q in p["qas"]))]
    else:
        lines = text.splitlines()
    copy = folder / f"{file.parent.name}-{file.name}.txt"
    copy.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return copy
