"""Question answering: the span of a context that answers a question."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from train.errors import DataError
from train.finetune.answer_scores import is_chinese, names_chinese, score_answers
from train.finetune.model_folder import chosen_length, load_model, open_config, open_for, open_tokenizer
from train.finetune.packages import require
from train.finetune.qa_spans import Found, Scores, best_spans
from train.finetune.qa_windows import (
    Frame,
    Pair,
    Reading,
    Span,
    Window,
    answer_tokens,
    check_reading,
    frame_of,
    inputs,
    pairs,
    window_around,
    windows,
    within,
)
from train.finetune.rows import Row, text_of
from train.finetune.settings import TASKS, Settings
from train.finetune.squad_json import Question, read_questions, read_squad
from train.finetune.task import Feature, Scored, Task

_STRIDE = 128  # tokens, where a window is large enough; a third of it otherwise
_BEST = 20  # spans of a question that are kept
_SHORTEST_LIMIT = 30  # tokens; answers of training may all be short by chance
_NOWHERE = (0, 0)  # the label of a window without the answer: its first token


class Features(Sequence[Feature]):
    """Windows with their labels, made into the model's input when they are asked for."""

    def __init__(self, labelled: list[tuple[Window, Span]], frame: Frame) -> None:
        self.labelled, self.frame = labelled, frame

    def __len__(self) -> int:
        return len(self.labelled)

    def __getitem__(self, place: Any) -> Any:
        window, (start, end) = self.labelled[place]
        return inputs(window, self.frame) | {"start_positions": start, "end_positions": end}


def prepare(settings: Settings) -> Task:
    """Files read, answers found in their windows. Raises UserError and DataError for whatever is wrong with them."""
    require("accelerate")
    config, max_length, tokenizer = open_for(settings)
    cutter = _cutter(tokenizer, max_length, settings.options["stride"])
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    found: list[str] = []
    splits = {split: _read(source, settings.repair, found) for split, source in named.items() if source}
    counts: dict[str, Counter[str]] = {split: Counter() for split in splits}
    features = {
        split: Features(list(_labelled(cutter, questions, split == "train", counts[split])), cutter.frame)
        for split, questions in splits.items()
    }
    if not counts["train"]["marked"]:
        raise DataError(f"{settings.train}: no question has an answer that can be learned")
    longest = settings.options["max_answer_length"] or _usual_length(features["train"])
    chinese = _chinese(settings.options["language"], splits["validation"])
    if chinese:
        require("nltk")
    no_answer = any(question.impossible for question in splits["train"])
    saved = {"max_length": max_length, "stride": cutter.reading.overlap}
    saved |= {"max_answer_length": longest, "no_answer": no_answer}

    def score(split: str, predictions: tuple[Scores, Scores]) -> Scored:
        answers = _answers(features[split].labelled, splits[split], predictions, longest, no_answer)
        return _scored(splits[split], answers, chinese)

    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=tokenizer,
        build_model=partial(_model, settings.model, config),
        collator=partial(collate, tokenizer),
        score=score,
        decisive="f1",
        found=[*found, *_in_words(counts, cutter.reading), *_how_scored(settings, chinese, longest, no_answer)],
        facts=saved | {"scored_as": "CMRC 2018" if chinese else "SQuAD", "counts": _plain(counts)},
        rows={split: len(questions) for split, questions in splits.items()},
        saved=saved,
    )


def collate(tokenizer: Any, features: list[Feature]) -> dict[str, torch.Tensor]:
    """One batch, padded on the right, so that places in a window are places in its row."""
    labels = [name for name in features[0] if name.endswith("_positions")]
    bare = [{name: values for name, values in feature.items() if name not in labels} for feature in features]
    batch = tokenizer.pad(bare, padding_side="right", pad_to_multiple_of=8, return_tensors="pt", verbose=False)
    return dict(batch) | {name: torch.tensor([feature[name] for feature in features]) for name in labels}


def predict(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """The best answer to each row's question in its context, with its place and its share among the best spans.

    A folder that we did not write says nothing of lengths: then it takes the usual ones. Raises DataError for a row
    without these two texts.
    """
    from transformers import AutoModelForQuestionAnswering

    config = open_config(folder)
    length = saved.get("max_length") or chosen_length(folder, config, None, TASKS["qa"].max_length)
    longest, no_answer = saved.get("max_answer_length", _SHORTEST_LIMIT), saved.get("no_answer", False)
    tokenizer = open_tokenizer(folder, config, length)
    model = load_model(AutoModelForQuestionAnswering, folder, config).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    cutter = _cutter(tokenizer, length, saved.get("stride"))
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        questions = [_asked(row) for row in some]
        cut = [window for pair in pairs(tokenizer, questions, cutter.reading) for window in cutter.windows(pair)]
        scores = _run(model, tokenizer, cutter.frame, cut, batch_size)
        answers = _answers([(window, _NOWHERE) for window in cut], questions, scores, longest, no_answer)
        for row, question, spans in zip(some, questions, answers, strict=True):
            shown = {name: value for name, value in row.fields.items() if name != "context"}
            yield shown | _in_json(question, spans[:1])


def read_inputs(file: str) -> list[Row] | None:
    """The questions of a SQuAD-format file for `predict`; None where the file has rows."""
    found = read_questions(file)
    if found is None:
        return None
    return [Row(q.place, {"id": q.id, "question": q.text, "context": q.context}) for q in found]


class Cutter(NamedTuple):
    """What cuts the contexts of one model."""

    tokenizer: Any
    frame: Frame
    reading: Reading

    def windows(self, pair: Pair) -> list[Window]:
        return windows(pair, self.frame, self.reading)


def _cutter(tokenizer: Any, max_length: int, stride: int | None) -> Cutter:
    reading = Reading(max_length, min(_STRIDE, max_length // 3) if stride is None else stride)
    frame = frame_of(tokenizer)
    check_reading(frame, reading)
    return Cutter(tokenizer, frame, reading)


def _read(source: str, repair: bool, found: list[str]) -> list[Question]:
    questions, repairs = read_squad(source, repair)
    for question in questions:
        if not question.answers and not question.impossible:
            raise DataError(
                f"{question.place}: no answer, and is_impossible is not true; questions to be answered are for "
                "`python -m train predict`"
            )
    found += repairs.sentences(source)
    return questions


def _labelled(
    cutter: Cutter, questions: Sequence[Question], training: bool, counts: Counter[str]
) -> Iterator[tuple[Window, Span]]:
    """Windows with the places of the first and last token of the answer, or of none.

    For training, a question whose answer has no place is left out, and one that every window cuts gets its own.
    """
    for pair in pairs(cutter.tokenizer, questions, cutter.reading):
        answer, cut = questions[pair.number].marked, cutter.windows(pair)
        tokens = answer_tokens(pair, answer) if answer else None
        if answer and tokens:
            edges = int(pair.places_N2[tokens[0], 0]), int(pair.places_N2[tokens[1] - 1, 1])
            counts["inside_a_token"] += edges != (answer.start, (answer.start or 0) + len(answer.text))
        if training and not questions[pair.number].impossible:
            whole = tokens is not None and any(within(window, tokens) for window in cut)
            if tokens and not whole and (own := window_around(pair, tokens, cutter.frame, cutter.reading)):
                cut.append(own)
                counts["own_window"] += 1
            elif not whole:
                counts["left_out"] += 1
                continue
            counts["marked"] += 1
        counts["windows"] += len(cut)
        for window in cut:
            yield window, (within(window, tokens) if tokens else None) or _NOWHERE


def _plain(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    return {split: dict(count) for split, count in counts.items()}


def _usual_length(features: Features) -> int:
    """Tokens that 99% of the answers of training do not go beyond."""
    lengths = [last - first + 1 for _, (first, last) in features.labelled if (first, last) != _NOWHERE]
    return max(_SHORTEST_LIMIT, int(np.quantile(lengths, 0.99, method="higher")))


def _chinese(language: str | None, questions: Sequence[Question]) -> bool:
    if language is not None:
        return names_chinese(language)
    return is_chinese([answer.text for question in questions for answer in question.answers])


def _model(folder: Path, config: Any) -> torch.nn.Module:
    from transformers import AutoModelForQuestionAnswering

    return load_model(AutoModelForQuestionAnswering, folder, config)


def _answers(
    labelled: Sequence[tuple[Window, Span]],
    questions: Sequence[Question],
    scores: tuple[Iterable[Scores], Iterable[Scores]],
    longest: int,
    may_be_none: bool,
) -> list[list[Found]]:
    """The best spans of every question; `scores` are start and end scores [windows, T] in the order of the windows."""
    result: list[list[Found]] = [[] for _ in questions]
    rows = zip(labelled, *scores, strict=True)
    for number, group in itertools.groupby(rows, key=lambda row: row[0][0].pair.number):
        scored = [(window, start_T, end_T) for (window, _), start_T, end_T in group]
        result[number] = best_spans(scored, questions[number].context, longest, _BEST, may_be_none)
    return result


def _scored(questions: Sequence[Question], answers: Sequence[list[Found]], chinese: bool) -> Scored:
    rows = [{"id": q.id} | _in_json(q, spans, _BEST) for q, spans in zip(questions, answers, strict=True)]
    for question, row in zip(questions, rows, strict=True):
        row["right"] = [answer.text for answer in question.answers]
    predictions = {row["id"]: row["answer"] for row in rows}
    return score_answers(questions, predictions, chinese), rows


def _in_json(question: Question, spans: Sequence[Found], others: int = 0) -> dict[str, Any]:
    """{"answer", "start", "end", "score"} of the best span; an empty answer where there is none."""
    if not spans:
        return {"answer": "", "start": None, "end": None, "score": 1.0}
    named = [
        {"answer": question.context[span.begin : span.end]}
        | ({"start": span.begin, "end": span.end} if span.end else {"start": None, "end": None})
        | {"score": round(span.probability, 4)}
        for span in spans
    ]
    return named[0] | ({"others": named[1:others]} if others else {})


def _in_words(counts: Mapping[str, Mapping[str, int]], reading: Reading) -> list[str]:
    windows_of = ", ".join(f"{count['windows']:,} {split}" for split, count in counts.items())
    sentences = [f"Windows of up to {reading.max_length} tokens that share {reading.overlap}: {windows_of}."]
    train = counts["train"]
    if number := train.get("own_window"):
        sentences.append(f"{number:,} answers are cut by every window and got one of their own.")
    if number := train.get("left_out"):
        sentences.append(
            f"{number:,} questions of training are left out: their answer has no place, or no window is as long."
        )
    if number := train.get("inside_a_token"):
        sentences.append(
            f"{number:,} of {train['marked']:,} answers of training begin or end inside a token, so the "
            "tokens around them are learned."
        )
    return sentences


def _how_scored(settings: Settings, chinese: bool, longest: int, no_answer: bool) -> list[str]:
    script = "CMRC 2018 (characters of Chinese, words of the rest)" if chinese else "SQuAD (words)"
    asked = settings.options["language"] is not None
    why = "as asked" if asked else "because of the script of the answers of validation; --language decides otherwise"
    limit = "as asked" if settings.options["max_answer_length"] else "99% of those of training have no more"
    nothing = ", or there is none" if no_answer else ""
    return [
        f"Exact match and F1 are those of the official script of {script}: {why}.",
        f"Answers are spans of up to {longest} tokens ({limit}){nothing}.",
    ]


def _asked(row: Row) -> Question:
    return Question(row.place, text_of(row, "question"), text_of(row, "context"), (), False, row.place)


@torch.inference_mode()
def _run(
    model: Any, tokenizer: Any, frame: Frame, cut: Sequence[Window], batch_size: int
) -> tuple[list[Scores], list[Scores]]:
    starts: list[Scores] = []
    ends: list[Scores] = []
    for first in range(0, len(cut), batch_size):
        batch = collate(tokenizer, [inputs(window, frame) for window in cut[first : first + batch_size]])
        output = model(**{name: tensor.to(model.device) for name, tensor in batch.items()})
        starts.extend(output.start_logits.float().cpu().numpy())
        ends.extend(output.end_logits.float().cpu().numpy())
    return starts, ends
