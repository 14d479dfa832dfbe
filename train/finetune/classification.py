"""Text classification: a label for a text or for a pair of texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from train.errors import DataError
from train.finetune import metrics, model_folder
from train.finetune.packages import require
from train.finetune.rows import Row, chosen_column, read_rows, text_of
from train.finetune.settings import Settings
from train.finetune.task import Feature, Scored, Task

_LABELS = ("label", "labels", "label_desc", "class", "category")


class Texts(NamedTuple):
    """The columns of the texts; `pair` is None where a row has one."""

    text: str
    pair: str | None


# The usual names: pairs first, because a row that has both columns of one is a pair.
_PAIRS = (
    *(("text", "text_pair"), ("sentence1", "sentence2"), ("premise", "hypothesis"), ("a", "b")),
    *(("question1", "question2"), ("question", "sentence"), ("query", "title")),
)
_SINGLE = ("text", "sentence", "content", "review", "query", "title")


class Example(NamedTuple):
    """One row, checked."""

    texts: tuple[str, ...]  # one or two
    label: str


def prepare(settings: Settings) -> Task:
    """Read and check all files. Raises UserError and DataError, with the place of the first mistake."""
    require("accelerate", "sklearn")
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    config = model_folder.open_config(settings.model)
    length = model_folder.chosen_length(settings.model, config, settings.max_length, settings.kind.max_length)
    tokenizer = model_folder.open_tokenizer(settings.model, config, length)
    sources = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    rows = {split: read_rows(source) for split, source in sources.items() if source}
    columns = text_columns(rows["train"], settings.options["text"], settings.options["text_pair"])
    label = chosen_column(rows["train"], settings.options["label"], _LABELS, "label", "--label")
    left_out: dict[str, int] = {}
    examples = {
        split: _examples(found, columns, label, settings.repair, left_out, split) for split, found in rows.items()
    }
    labels = sorted_labels(example.label for _, example in examples["train"])
    if len(labels) < 2:
        raise DataError(f"{settings.train}: all rows have the label {labels[0]!r}: there is nothing to tell apart")
    for split in examples.keys() - {"train"}:
        examples[split] = _known(examples[split], labels, settings, left_out, split)
    ids = {name: number for number, name in enumerate(labels)}
    cut: dict[str, int] = {}
    features = {
        split: encoded(tokenizer, [texts for _, (texts, _) in found], length, cut, split)
        for split, found in examples.items()
    }
    for split, found in examples.items():
        for feature, (_, example) in zip(features[split], found, strict=True):
            feature["labels"] = ids[example.label]

    config.num_labels = len(labels)
    config.id2label, config.label2id = dict(enumerate(labels)), ids
    config.problem_type = "single_label_classification"

    def score(split: str, logits: np.ndarray) -> Scored:
        true = [ids[example.label] for _, example in examples[split]]
        predicted = logits.argmax(-1).tolist()
        rows_out = [
            {"place": place, "label": example.label, "predicted": labels[number]}
            for (place, example), number in zip(examples[split], predicted, strict=True)
        ]
        return metrics.classification(true, predicted), rows_out

    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=tokenizer,
        build_model=lambda: model_folder.load_model(AutoModelForSequenceClassification, settings.model, config),
        collator=DataCollatorWithPadding(tokenizer),
        score=score,
        decisive="accuracy",
        found=[_labels_in_words(labels), *cut_in_words(cut, rows, length), *left_out_in_words(left_out)],
        facts={"labels": labels, "columns": columns._asdict() | {"label": label}, "cut": cut, "left_out": left_out},
        rows={split: len(found) for split, found in rows.items()},
        loss=cross_entropy,
        saved={"pair": columns.pair is not None},
    )


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the labelled items of the whole global batch, however it lies on ranks; labels of -100 do not count."""
    logits = outputs["logits"].float().flatten(0, -2)
    total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(-100).sum().clamp(min=1))


def text_columns(rows: Sequence[Row], text: str | None, pair: str | None) -> Texts:
    """The columns of the texts: as given, else by the usual names. Raises UserError where none is found."""
    there = rows[0].fields.keys()
    if not text and not pair:
        for first, second in _PAIRS:
            if first in there and second in there:
                return Texts(first, second)
    found = chosen_column(rows, text, _SINGLE, "text", "--text")
    return Texts(found, chosen_column(rows, pair, (), "second text", "--text-pair") if pair else None)


def texts_of(row: Row, columns: Texts) -> tuple[str, ...]:
    """One or two. Raises DataError with the row's place."""
    return tuple(text_of(row, column) for column in columns if column is not None)


def label_of(row: Row, column: str) -> str:
    """Words and numbers alike as text: 1, 1.0 and "1" are one label. Raises DataError with the row's place."""
    value = row.fields.get(column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool | int | str) and str(value).strip():
        return str(value).strip()
    raise DataError(f"{row.place}: {column!r} is {'missing' if value is None else repr(value)[:40]}, not a label")


def sorted_labels(labels: Any) -> list[str]:
    """Each once; numbers by their size, words by their characters. The index is the label's id."""
    found = set(labels)
    numbers = all(label.lstrip("-").isdecimal() for label in found)
    return sorted(found, key=lambda label: (int(label) if numbers else 0, label))


def encoded(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], length: int, cut: dict[str, int], split: str
) -> list[Feature]:
    """Token ids of each row, cut at `length`; `cut[split]` becomes the number of rows that are longer."""
    columns = [list(column) for column in zip(*texts, strict=True)]
    whole = tokenizer(*columns, truncation=False, return_attention_mask=False, verbose=False)
    cut[split] = sum(len(ids) > length for ids in whole["input_ids"])
    short = tokenizer(*columns, truncation="longest_first", max_length=length) if cut[split] else tokenizer(*columns)
    return [dict(zip(short.keys(), values, strict=True)) for values in zip(*short.values(), strict=True)]


def cut_in_words(cut: Mapping[str, int], rows: Mapping[str, Sequence[Row]], length: int) -> list[str]:
    """A sentence where a split has rows that are longer than the model is given."""
    parts = [f"{number:,} of {len(rows[split]):,} in {split}" for split, number in cut.items() if number]
    return [f"Cut at {length} tokens: {', '.join(parts)} (--max-length)."] if parts else []


def left_out_in_words(left_out: Mapping[str, int]) -> list[str]:
    """A sentence where --repair left rows out."""
    parts = [f"{number:,} of {split}" for split, number in left_out.items() if number]
    return [f"Left out by --repair: {', '.join(parts)}."] if parts else []


def _labels_in_words(labels: Sequence[str]) -> str:
    return f"{len(labels)} labels: {', '.join(labels[:10])}{' ...' if len(labels) > 10 else ''}."


_Placed = tuple[str, Example]


def _examples(
    rows: Sequence[Row], columns: Texts, label: str, repair: bool, left_out: dict[str, int], split: str
) -> list[_Placed]:
    found: list[_Placed] = []
    for row in rows:
        try:
            found.append((row.place, Example(texts_of(row, columns), label_of(row, label))))
        except DataError:
            if not repair:
                raise
            left_out[split] = left_out.get(split, 0) + 1
    if not found:
        raise DataError(f"{rows[0].place}: no row of this file can be used")
    return found


def _known(
    examples: list[_Placed], labels: Sequence[str], settings: Settings, left_out: dict[str, int], split: str
) -> list[_Placed]:
    known = set(labels)
    unknown = [(place, example) for place, example in examples if example.label not in known]
    if unknown and not settings.repair:
        place, example = unknown[0]
        near = ", ".join(labels[:10])
        raise DataError(
            f"{place}: the label {example.label!r} does not occur in {settings.train} ({near}); --repair leaves such "
            "rows out"
        )
    left_out[split] = left_out.get(split, 0) + len(unknown)
    if len(unknown) == len(examples):
        raise DataError(f"{examples[0][0]}: no row of this file has a label of {settings.train}")
    return [placed for placed in examples if placed[1].label in known]


def predict(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """A label with its probability for each row, by transformers' own pipeline."""
    from transformers import pipeline

    classify = pipeline("text-classification", model=str(folder), batch_size=batch_size)
    inputs: list[Any] = [
        {"text": row.fields["text"], "text_pair": row.fields["text_pair"]} if saved.get("pair") else row.fields["text"]
        for row in rows
    ]
    for row, answer in zip(rows, classify(inputs, truncation=True), strict=True):
        yield dict(row.fields) | {"label": answer["label"], "score": round(answer["score"], 4)}
