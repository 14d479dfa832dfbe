"""Exact match and F1 of answers are those of the official scripts."""

import itertools
import random
import re
import string

import pytest

from train.finetune.answer_scores import (
    cmrc_exact,
    cmrc_f1,
    is_chinese,
    mixed_segments,
    score_answers,
    squad_exact,
    squad_f1,
)
from train.finetune.squad_json import Answer, Question

# Prediction, right answer, exact match, F1: worked out by hand from evaluate-v1.1.py.
SQUAD = [
    ("the Cat", "cat.", 1, 1),  # article, case and punctuation do not count
    ("black cat", "a cat", 0, 2 / 3),  # precision 1/2, recall 1
    ("New-York", "New York", 0, 0),  # punctuation goes without a space in its place
    ("cat cat", "cat", 0, 2 / 3),  # bags: one of the two is in common
    ("", "cat", 0, 0),
    ("the", "an", 1, 0),  # nothing is left of both: the same, and nothing in common
    ("  in\u00a01999 ", "in 1999", 1, 1),
    ("Antarctica", "antarctica an", 1, 1),
    ("50 %", "50", 1, 1),
    ("中国", "中国。", 0, 0),  # a full-width stop is no punctuation of string.punctuation
]
# The same from cmrc2018_evaluate.py.
CMRC = [
    ("北京市", "北京", 0, 0.8),  # 2 of 3 and 2 of 2
    ("《北京》。", "北京", 1, 1),
    ("京北", "北京", 0, 0.5),  # the longest common run has one character
    ("北京大学", "北大", 0, 2 * (1 / 4) * (1 / 2) / (3 / 4)),  # no subsequence: a run
    ("2012年", "2012 年", 0, 1),  # exact match keeps the space, segments do not
    ("光荣和Omega-Force", "光荣和omega force", 0, 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5)),  # "-" goes: omegaforce
    ("", "北京", 0, 0),
    ("。", "，", 1, 0),  # nothing is left of both
    ("39.5%", "39.5", 0, 2 / 3),  # words of NLTK: "39.5", "%"
    ("龦龦", "龥龦", 0, 0),  # Chinese characters end at U+9FA5 for the script: "龦龦" is one word
]


@pytest.mark.parametrize(("prediction", "truth", "exact", "f1"), SQUAD)
def test_squad_by_hand(prediction: str, truth: str, exact: float, f1: float) -> None:
    """Reference: worked out by hand."""
    assert squad_exact(prediction, truth) == exact
    assert squad_f1(prediction, truth) == pytest.approx(f1)


@pytest.mark.parametrize(("prediction", "truth", "exact", "f1"), CMRC)
def test_cmrc_by_hand(prediction: str, truth: str, exact: float, f1: float) -> None:
    """Reference: worked out by hand."""
    assert cmrc_exact(prediction, truth) == exact
    assert cmrc_f1(prediction, truth) == pytest.approx(f1)


def slow_squad(prediction: str, truth: str) -> tuple[float, float]:
    """The published definition, step by step."""
    words = []
    for text in (prediction, truth):
        text = "".join(c for c in text.lower() if c not in string.punctuation)
        words.append(re.sub(r"\b(a|an|the)\b", " ", text).split())
    left = list(words[1])
    common = 0
    for word in words[0]:
        if word in left:
            left.remove(word)
            common += 1
    f1 = 2 * common / (len(words[0]) + len(words[1])) if common else 0
    return float(" ".join(words[0]) == " ".join(words[1])), f1


def slow_cmrc_f1(prediction: str, truth: str) -> float:
    """Every run of the one is looked for in the other."""
    found, right = mixed_segments(prediction), mixed_segments(truth)
    runs = [right[i:j] for i, j in itertools.combinations(range(len(right) + 1), 2)]
    inside = [run for run in runs if any(found[k : k + len(run)] == run for k in range(len(found)))]
    common = max(map(len, inside), default=0)
    return 2 * common / (len(found) + len(right)) if common else 0


def test_both_agree_with_slow_definitions_on_random_texts() -> None:
    """Reference: slow_squad and slow_cmrc_f1."""
    rng = random.Random(0)
    pieces = ["the ", "a", " an ", "cat", "Cat ", "x-y", ". ", "，", "中", "国", "中国 ", "2012", "%", "don't ", "～"]
    for _ in range(500):
        one, other = ("".join(rng.choices(pieces, k=rng.randint(0, 7))) for _ in range(2))
        assert (squad_exact(one, other), squad_f1(one, other)) == pytest.approx(slow_squad(one, other)), (one, other)
        assert cmrc_f1(one, other) == pytest.approx(slow_cmrc_f1(one, other)), (one, other)


def test_segments_are_characters_of_chinese_and_words_of_the_rest() -> None:
    """Reference: cmrc2018_evaluate.py's mixed_segmentation(rm_punc=True), by hand."""
    assert mixed_segments(" 他说“Don't go.”是 3.5% ") == ["他", "说", "do", "n't", "go", ".", "是", "3.5", "%"]
    assert mixed_segments("go，on") == ["goon"]  # what is left out parts nothing


def question(name: str, *answers: str, impossible: bool = False) -> Question:
    return Question(name, "?", "", tuple(Answer(text, 0) for text in answers), impossible, name)


def test_the_best_answer_counts_and_a_missing_prediction_is_wrong() -> None:
    """evaluate-v1.1.py: maximum over answers, mean over all questions, in percent."""
    questions = [question("1", "black cat", "cat"), question("2", "dog")]
    assert score_answers(questions, {"1": "the cat"}, chinese=False) == {"exact_match": 50.0, "f1": 50.0}
    assert score_answers(questions, {"1": "old cat", "2": "dog"}, chinese=False) == {
        "exact_match": 50.0,
        "f1": pytest.approx(50 * (1 + 2 / 3)),
    }
    chinese = [question("1", "北京", "北京市")]
    assert score_answers(chinese, {"1": "北京市。"}, chinese=True) == {"exact_match": 100.0, "f1": 100.0}


def test_questions_without_an_answer_are_right_when_nothing_is_said() -> None:
    """evaluate-v2.0.py, by hand; an answer that normalisation leaves nothing of is none."""
    questions = [question("1", "cat"), question("2", impossible=True), question("3", impossible=True)]
    scores = score_answers(questions, {"1": "", "2": "", "3": "cat"}, chinese=False)
    assert scores == pytest.approx(
        {"exact_match": 100 / 3, "f1": 100 / 3, "has_answer_f1": 0.0, "no_answer_accuracy": 50.0}
    )


def test_the_script_of_answers_decides() -> None:
    """Numbers and names in Latin letters stand in Chinese answers too."""
    assert is_chinese(["2012年", "光荣和ω-force", "北京"])
    assert not is_chinese(["Beijing (北京)", "in 2012", "the Great Wall"])
    assert not is_chinese(["1999", "?"])
    assert not is_chinese([])
