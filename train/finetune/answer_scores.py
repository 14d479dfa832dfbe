"""Exact match and F1 of answers, as the official scripts of SQuAD and of CMRC 2018 define them.

SQuAD: evaluate-v1.1.py of Rajpurkar et al. 2016, evaluate-v2.0.py of Rajpurkar et al. 2018 where a file has questions
without an answer. CMRC 2018: cmrc2018_evaluate.py of Cui et al. 2019, version 6. Both take the best of the right
answers for each question, and the mean over all questions, in percent.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from train.finetune.squad_json import Question

Score = Callable[[str, str], float]  # of a prediction and a right answer

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》……·、「」（）－～『』")
_HAN = re.compile(r"[\u4e00-\u9fa5]")  # what the script of CMRC 2018 takes for a Chinese character
_CHINESE_CODES = ("zh", "zho", "chi", "cmn", "yue")
_CHINESE_SHARE = 0.3  # of the letters of the answers; "2012年" is Chinese, a name in brackets makes no text English


def names_chinese(language: str) -> bool:
    """Whether a language's code, such as zh-CN, is one of Chinese."""
    return language.lower().replace("_", "-").split("-")[0] in _CHINESE_CODES


def is_chinese(texts: Sequence[str]) -> bool:
    """Whether the letters and digits of these texts are to a good part Chinese characters."""
    letters = sum(character.isalnum() for text in texts for character in text)
    return letters > 0 and sum(len(_HAN.findall(text)) for text in texts) >= _CHINESE_SHARE * letters


def score_answers(questions: Sequence[Question], predictions: Mapping[str, str], chinese: bool) -> dict[str, float]:
    """{"exact_match", "f1"} in percent over all questions; a question without a prediction counts 0.

    Where some have no answer, also "has_answer_f1" and "no_answer_accuracy", as evaluate-v2.0.py says them.
    """
    second = any(question.impossible or not question.answers for question in questions)
    exact, overlap = (cmrc_exact, cmrc_f1) if chinese else (squad_exact, squad_f1)
    scores = [_best(exact, overlap, predictions.get(question.id), question, second) for question in questions]
    result = {"exact_match": _percent([e for e, _ in scores]), "f1": _percent([f for _, f in scores])}
    if second:
        has = [bool(question.answers) for question in questions]
        result["has_answer_f1"] = _percent([f for (_, f), known in zip(scores, has, strict=True) if known])
        result["no_answer_accuracy"] = _percent([e for (e, _), known in zip(scores, has, strict=True) if not known])
    return result


def squad_exact(prediction: str, truth: str) -> float:
    """1 where both are the same after normalisation."""
    return float(normalized(prediction) == normalized(truth))


def squad_f1(prediction: str, truth: str) -> float:
    """Harmonic mean of precision and recall of the words, as bags."""
    found, right = normalized(prediction).split(), normalized(truth).split()
    return _f1(sum((Counter(found) & Counter(right)).values()), len(found), len(right))


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def cmrc_exact(prediction: str, truth: str) -> float:
    """1 where both are the same in lower case and without the script's punctuation."""
    return float(_without_punctuation(prediction) == _without_punctuation(truth))


def cmrc_f1(prediction: str, truth: str) -> float:
    """As `squad_f1`, of the longest run of segments that both have in common."""
    found, right = mixed_segments(prediction), mixed_segments(truth)
    return _f1(_longest_common_run(found, right), len(found), len(right))


def mixed_segments(text: str) -> list[str]:
    """Chinese characters one by one, the words of everything between them; without the script's punctuation.

    Words are those of NLTK's word tokenizer. The script also splits sentences with NLTK's Punkt model, a download,
    which parts a full stop from the word before it inside a stretch of English too, not at its end alone.
    """
    from nltk.tokenize import word_tokenize

    segments: list[str] = []
    other = ""
    for character in text.lower().strip():
        if character in _CMRC_PUNCTUATION:
            continue
        if _HAN.match(character):
            segments += [*word_tokenize(other, preserve_line=True), character]
            other = ""
        else:
            other += character
    return [*segments, *word_tokenize(other, preserve_line=True)]


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _longest_common_run(first: Sequence[str], second: Sequence[str]) -> int:
    longest, ends = 0, [0] * (len(second) + 1)  # ends[j]: length of the common run that ends before second[j]
    for segment in first:
        ends = [0, *(ends[place] + 1 if other == segment else 0 for place, other in enumerate(second))]
        longest = max(longest, *ends)
    return longest


def _f1(common: int, found: int, right: int) -> float:
    if not common:
        return 0.0
    precision, recall = common / found, common / right
    return 2 * precision * recall / (precision + recall)


def _best(
    exact: Score, overlap: Score, prediction: str | None, question: Question, second: bool
) -> tuple[float, float]:
    """(exact match, F1) with the right answer that suits best."""
    if prediction is None:
        return 0.0, 0.0
    truths = [answer.text for answer in question.answers]
    if second:  # 2.0 takes no account of answers that normalisation leaves nothing of
        truths = [text for text in truths if normalized(text)]
    if not truths:  # right is to say nothing
        return (exact(prediction, ""),) * 2
    return max(exact(prediction, text) for text in truths), max(overlap(prediction, text) for text in truths)


def _percent(scores: Sequence[float]) -> float:
    return 100 * sum(scores) / len(scores) if scores else 0.0
