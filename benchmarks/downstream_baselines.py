"""What can be had without any neural network, for each kind of task: the floor under benchmarks/downstream.py."""

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

Rows = list[dict]


def baseline(entry: dict, folder: Path) -> tuple[str, float]:
    """(its name, the metric of the test set that the table shows)."""
    return _BASELINES[entry["task"]](folder, entry)


def _json_lines(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _pieces(text: str) -> list[str]:
    """Words, and single characters of Chinese."""
    return re.findall(r"[一-鿿]|[^\W一-鿿]+|[^\w\s]", text.lower())


def _pieces_and_pairs(text: str) -> list[str]:
    pieces = _pieces(text)
    return pieces + [" ".join(pair) for pair in pairwise(pieces)]


def _naive_bayes(folder: Path, entry: dict) -> tuple[str, float]:
    """Words or characters and their pairs."""
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB

    train, test = (_json_lines(folder / entry[split]) for split in ("train", "test"))
    count = CountVectorizer(analyzer=_pieces_and_pairs)
    model = MultinomialNB().fit(count.fit_transform([row["text"] for row in train]), [row["label"] for row in train])
    right = model.predict(count.transform([row["text"] for row in test])) == [row["label"] for row in test]
    return "naive Bayes", float(right.mean())


def _overlap(folder: Path, entry: dict) -> tuple[str, float]:
    """Shared words or characters over all of them (Jaccard)."""
    from scipy.stats import spearmanr

    rows = _json_lines(folder / entry["test"])
    sets = [(set(_pieces(row["a"])), set(_pieces(row["b"]))) for row in rows]
    alike = [len(a & b) / max(1, len(a | b)) for a, b in sets]
    return "shared words", float(spearmanr(alike, [row["score"] for row in rows]).statistic)


def _sentences(path: Path) -> list[list[tuple[str, str]]]:
    blocks = path.read_text(encoding="utf-8").strip().split("\n\n")
    return [[tuple(line.split("\t")) for line in block.splitlines()] for block in blocks]  # type: ignore[misc]


def _dictionary(folder: Path, entry: dict) -> tuple[str, float]:
    """Every word gets the tag that it had most often in training, and O where it was never seen."""
    from seqeval.metrics import f1_score

    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for sentence in _sentences(folder / entry["train"]):
        for word, tag in sentence:
            seen[word][tag] += 1
    test = _sentences(folder / entry["test"])
    tags = [[seen[word].most_common(1)[0][0] if word in seen else "O" for word, _ in sentence] for sentence in test]
    return "dictionary of the training tags", float(f1_score([[tag for _, tag in sentence] for sentence in test], tags))


def _nearest_sentence(folder: Path, entry: dict) -> tuple[str, float]:
    """The sentence of the context that shares most with the question."""
    from train.finetune.answer_scores import is_chinese, score_answers
    from train.finetune.squad_json import read_squad

    questions, _ = read_squad(str(folder / entry["test"]), True)
    predictions = {}
    for question in questions:
        asked = set(_pieces(question.text))
        sentences = [part for part in re.split(r"(?<=[.!?。！？])", question.context) if part.strip()]
        predictions[question.id] = max(sentences, key=lambda part: len(asked & set(_pieces(part)))).strip()
    chinese = is_chinese([answer.text for question in questions for answer in question.answers])
    return "the sentence nearest to the question", score_answers(questions, predictions, chinese)["f1"]


def _copy(folder: Path, entry: dict) -> tuple[str, float]:
    """The source as it is."""
    from train.finetune.translation_scores import Scorer

    prefix, (source, target) = folder / entry["test"], (entry["source_language"], entry["target_language"])
    texts = [Path(f"{prefix}.{name}").read_text(encoding="utf-8").splitlines() for name in (source, target)]
    return "copy", Scorer(texts[1], target, lowercased=False).score(texts[0])["bleu"]


_BASELINES = {
    "classification": _naive_bayes,
    "similarity": _overlap,
    "ner": _dictionary,
    "qa": _nearest_sentence,
    "translation": _copy,
}
