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
from train.finetune.rows import Row, chosen_column, read_splits, usable
from train.finetune.settings import Settings
from train.finetune.task import Feature, Scored, Task
from train.finetune.texts import Texts, cut_in_words, encoded, left_out_in_words, text_columns, texts_of

_LABELS = ("label", "labels", "label_desc", "class", "category")


class Example(NamedTuple):
    """One row, checked."""

    texts: tuple[str, ...]  # one or two
    label: str


_Placed = tuple[str, Example]


def prepare(settings: Settings) -> Task:
    """Read and check all files. Raises UserError and DataError, with the place of the first mistake."""
    require("accelerate", "sklearn")
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    config, length, tokenizer = model_folder.open_for(settings)
    rows = read_splits(settings)
    columns = text_columns(rows["train"], settings.options["text"], settings.options["text_pair"])
    label = chosen_column(rows["train"], settings.options["label"], _LABELS, "label", "--label")
    left_out: dict[str, int] = {}
    examples = _examples(rows, columns, label, settings, left_out)
    labels = _labels(examples["train"], settings)
    for split in examples.keys() - {"train"}:
        examples[split] = _known(examples[split], labels, settings, left_out, split)
    ids = {name: number for number, name in enumerate(labels)}
    config.num_labels, config.problem_type = len(labels), "single_label_classification"
    config.id2label, config.label2id = dict(enumerate(labels)), ids
    cut: dict[str, int] = {}
    features = {split: _features(tokenizer, found, ids, length, cut, split) for split, found in examples.items()}
    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=tokenizer,
        build_model=lambda: model_folder.load_model(AutoModelForSequenceClassification, settings.model, config),
        collator=DataCollatorWithPadding(tokenizer),
        score=lambda split, logits: _score(examples[split], labels, logits),
        decisive="accuracy",
        found=[_labels_in_words(labels), *cut_in_words(cut, rows, length), *left_out_in_words(left_out)],
        facts={"labels": labels, "columns": columns._asdict() | {"label": label}, "cut": cut, "left_out": left_out},
        rows={split: len(found) for split, found in rows.items()},
        loss=cross_entropy,
        saved={"pair": columns.pair is not None, "columns": columns.by_input()},
    )


def _features(
    tokenizer: Any, examples: Sequence[_Placed], ids: Mapping[str, int], length: int, cut: dict[str, int], split: str
) -> list[Feature]:
    features = encoded(tokenizer, [example.texts for _, example in examples], length, cut, split)
    for feature, (_, example) in zip(features, examples, strict=True):
        feature["labels"] = ids[example.label]
    return features


def _score(examples: Sequence[_Placed], labels: Sequence[str], logits: np.ndarray) -> Scored:
    predicted = [labels[number] for number in logits.argmax(-1)]
    answers = [
        {"place": place, "label": example.label, "predicted": label}
        for (place, example), label in zip(examples, predicted, strict=True)
    ]
    return metrics.classification([example.label for _, example in examples], predicted), answers


def cross_entropy(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the labelled items of the whole global batch, however it lies on ranks; labels of -100 do not count."""
    logits = outputs["logits"].float().flatten(0, -2)
    total = torch.nn.functional.cross_entropy(logits, labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(-100).sum().clamp(min=1))


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


def _labels_in_words(labels: Sequence[str]) -> str:
    return f"{len(labels)} labels: {', '.join(labels[:10])}{' ...' if len(labels) > 10 else ''}."


def _examples(
    rows: Mapping[str, list[Row]], columns: Texts, label: str, settings: Settings, left_out: dict[str, int]
) -> dict[str, list[_Placed]]:
    def check(row: Row) -> Example:
        return Example(texts_of(row, columns), label_of(row, label))

    return {
        split: usable(found, check, repair=settings.repair, left_out=left_out, split=split)
        for split, found in rows.items()
    }


def _labels(examples: Sequence[_Placed], settings: Settings) -> list[str]:
    labels = sorted_labels(example.label for _, example in examples)
    if len(labels) < 2:
        raise DataError(f"{settings.train}: all rows have the label {labels[0]!r}: there is nothing to tell apart")
    return labels


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

    with model_folder.mistakes_named(folder, "model"):
        classify = pipeline("text-classification", model=str(folder), batch_size=batch_size)
    inputs: list[Any] = [
        {"text": row.fields["text"], "text_pair": row.fields["text_pair"]} if saved.get("pair") else row.fields["text"]
        for row in rows
    ]
    for row, answer in zip(rows, classify(inputs, truncation=True), strict=True):
        yield dict(row.fields) | {"label": answer["label"], "score": round(answer["score"], 4)}
