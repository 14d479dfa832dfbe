"""Similarity of two texts as a number: by an encoder that reads both at once, or by the cosine of a vector of each.

Legend: B pairs of a batch, T tokens, D width.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from train.errors import DataError, UserError
from train.finetune import metrics, model_folder
from train.finetune.packages import require
from train.finetune.rows import Row, chosen_column, read_splits, usable
from train.finetune.settings import Settings
from train.finetune.task import Feature, Loss, Scored, Task
from train.finetune.texts import cut_in_words, encoded, left_out_in_words, text_columns, texts_of

_SCORES = ("score", "similarity_score", "similarity", "label")
_SECOND = "second_"  # before the names of a second text's inputs


class Example(NamedTuple):
    """One row, checked."""

    texts: tuple[str, ...]
    score: float


class Scale(NamedTuple):
    """The scores of the training data."""

    lowest: float
    highest: float
    mean: float
    deviation: float


_Placed = tuple[str, Example]


def prepare(settings: Settings) -> Task:
    """Read and check all files. Raises UserError and DataError, with the place of the first mistake."""
    require("accelerate", "scipy")
    config, length, tokenizer = model_folder.open_for(settings)
    rows = read_splits(settings)
    columns = text_columns(rows["train"], settings.options["text"], settings.options["text_pair"])
    if columns.pair is None:
        there = ", ".join(rows["train"][0].fields)
        raise UserError(f"{settings.train}: two texts a row are needed: name them with --text, --text-pair ({there})")
    score = chosen_column(rows["train"], settings.options["score"], _SCORES, "score", "--score")
    left_out: dict[str, int] = {}
    examples = {
        split: usable(
            found,
            lambda row: Example(texts_of(row, columns), score_of(row, score)),
            repair=settings.repair,
            left_out=left_out,
            split=split,
        )
        for split, found in rows.items()
    }
    scale = _scale(examples["train"], settings)
    cut: dict[str, int] = {}
    cosine = settings.options["method"] == "cosine"
    make = _features_apart if cosine else _features
    features = {split: make(tokenizer, found, length, cut, split) for split, found in examples.items()}
    build, collate, loss = (_of_cosine if cosine else _of_pairs)(settings, config, tokenizer, scale)
    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=tokenizer,
        build_model=build,
        collator=collate,
        score=lambda split, predicted: _score(examples[split], scale if cosine else None, predicted),
        decisive="spearman",
        found=[
            f"Scores from {scale.lowest:g} to {scale.highest:g}, {scale.mean:.3g} on average.",
            *cut_in_words(cut, rows, length),
            *left_out_in_words(left_out),
        ],
        facts={"columns": columns._asdict() | {"score": score}, "cut": cut, "left_out": left_out, **scale._asdict()},
        rows={split: len(found) for split, found in rows.items()},
        loss=loss,
        saved={
            "pair": True,
            "columns": columns.by_input(),
            "method": settings.options["method"],
            "pooling": settings.options["pooling"],
            "lowest": scale.lowest,
            "highest": scale.highest,
        },
        to_save=(lambda model: model.encoder) if cosine else (lambda model: model),
    )


def score_of(row: Row, column: str) -> float:
    """A finite number, or text that is one. Raises DataError with the row's place."""
    value = row.fields.get(column)
    try:
        number = float(value) if not isinstance(value, bool) else math.nan  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{row.place}: {column!r} is {'missing' if value is None else repr(value)[:40]}, not a number")
    return number


def _scale(examples: Sequence[_Placed], settings: Settings) -> Scale:
    scores = [example.score for _, example in examples]
    deviation = statistics.pstdev(scores)
    if not deviation:
        raise DataError(f"{settings.train}: all rows have the score {scores[0]:g}: there is nothing to learn")
    return Scale(min(scores), max(scores), statistics.fmean(scores), deviation)


def _score(examples: Sequence[_Placed], scale: Scale | None, predicted: np.ndarray) -> Scored:
    """`scale` where the predictions are cosines: they are written in the unit of the data."""
    numbers = predicted.reshape(-1).astype(float)
    if scale is not None:
        numbers = scale.lowest + numbers * (scale.highest - scale.lowest)
    answers = [
        {"place": place, "score": example.score, "predicted": round(number, 4)}
        for (place, example), number in zip(examples, numbers.tolist(), strict=True)
    ]
    return metrics.correlation([example.score for _, example in examples], numbers.tolist()), answers


# ---------------------------------------------------------------------------------------------------------------------
# One encoder over both texts

_Parts = tuple[Callable[[], nn.Module], Callable[[list[Feature]], Mapping[str, torch.Tensor]], Loss]


def _features(
    tokenizer: Any, examples: Sequence[_Placed], length: int, cut: dict[str, int], split: str
) -> list[Feature]:
    features = encoded(tokenizer, [example.texts for _, example in examples], length, cut, split)
    for feature, (_, example) in zip(features, examples, strict=True):
        feature["labels"] = example.score
    return features


def _of_pairs(settings: Settings, config: Any, tokenizer: Any, scale: Scale) -> _Parts:
    """A regression head; it starts at the mean of the scores, whatever their unit is."""
    from transformers import AutoModelForSequenceClassification, DataCollatorWithPadding

    config.num_labels, config.problem_type = 1, "regression"
    config.id2label, config.label2id = {0: "score"}, {"score": 0}

    def build() -> nn.Module:
        model = model_folder.load_model(AutoModelForSequenceClassification, settings.model, config)
        last = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == 1][-1]
        if last.bias is not None:
            nn.init.constant_(last.bias, scale.mean)
        return model

    def loss(outputs: Any, labels_B: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        wrong_B: torch.Tensor = (outputs["logits"].float().squeeze(-1) - labels_B.float()) / scale.deviation
        return wrong_B.square().sum() / (len(labels_B) if num_items_in_batch is None else num_items_in_batch)

    return build, DataCollatorWithPadding(tokenizer), loss


# ---------------------------------------------------------------------------------------------------------------------
# A vector for each text


class Cosine(nn.Module):
    """The cosine of two texts' vectors (Reimers and Gurevych 2019, Sentence-BERT); `encoder` is what is saved."""

    def __init__(self, encoder: Any, pooling: str) -> None:
        super().__init__()
        self.encoder, self.pooling = encoder, pooling

    def forward(self, labels: torch.Tensor | None = None, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """{"logits": cosine of each pair, [B]}; inputs of the second text begin with `second_`."""
        first = {name: tensor for name, tensor in inputs.items() if not name.startswith(_SECOND)}
        second = {name.removeprefix(_SECOND): tensor for name, tensor in inputs.items() if name.startswith(_SECOND)}
        first_BD, second_BD = (pooled(self.encoder, texts, self.pooling) for texts in (first, second))
        return {"logits": nn.functional.cosine_similarity(first_BD, second_BD)}


def pooled(encoder: Any, inputs: Mapping[str, torch.Tensor], pooling: str) -> torch.Tensor:
    """The vector of each text, [B, D]: the state of its first token, or the mean over its tokens without padding."""
    hidden_BTD: torch.Tensor = encoder(**inputs).last_hidden_state.float()
    if pooling == "cls":
        return hidden_BTD[:, 0]
    mask_BT1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_BTD.dtype)
    return (hidden_BTD * mask_BT1).sum(1) / mask_BT1.sum(1)


def _features_apart(
    tokenizer: Any, examples: Sequence[_Placed], length: int, cut: dict[str, int], split: str
) -> list[Feature]:
    """`cut[split]` counts pairs of which either text is cut."""
    sides = [
        encoded(tokenizer, [(example.texts[side],) for _, example in examples], length, cut, f"{split} {side}")
        for side in (0, 1)
    ]
    cut[split] = max(cut.pop(f"{split} 0"), cut.pop(f"{split} 1"))
    return [
        first | {f"{_SECOND}{name}": value for name, value in second.items()} | {"labels": example.score}
        for first, second, (_, example) in zip(*sides, examples, strict=True)
    ]


def _of_cosine(settings: Settings, config: Any, tokenizer: Any, scale: Scale) -> _Parts:
    """The cosine learns where a score lies between the lowest and the highest, from 0 to 1."""
    from transformers import AutoModel

    if settings.deepspeed is not None:
        raise UserError("--method cosine: not with --deepspeed; start it with torchrun alone")

    def build() -> nn.Module:
        encoder = model_folder.load_model(AutoModel, settings.model, config, ("pooler",))
        return Cosine(encoder, settings.options["pooling"])

    def collate(features: list[Feature]) -> dict[str, torch.Tensor]:
        batch: dict[str, torch.Tensor] = {"labels": torch.tensor([feature["labels"] for feature in features])}
        for prefix in ("", _SECOND):
            texts = [_side(feature, prefix) for feature in features]
            padded = tokenizer.pad(texts, return_tensors="pt")
            batch |= {f"{prefix}{name}": tensor for name, tensor in padded.items()}
        return batch

    def loss(outputs: Any, labels_B: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        wanted_B = (labels_B - scale.lowest) / (scale.highest - scale.lowest)
        wrong_B: torch.Tensor = outputs["logits"] - wanted_B
        return wrong_B.square().sum() / (len(labels_B) if num_items_in_batch is None else num_items_in_batch)

    return build, collate, loss


def _side(feature: Feature, prefix: str) -> Feature:
    """The inputs of one text of a pair."""
    names = [name for name in feature if name != "labels" and name.startswith(_SECOND) == bool(prefix)]
    return {name.removeprefix(prefix): feature[name] for name in names}


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


def predict(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """A score in the unit of the training data for each pair."""
    make = _cosines if saved.get("method") == "cosine" else _regressions
    for row, score in zip(rows, make(folder, rows, saved, batch_size), strict=True):
        yield dict(row.fields) | {"score": round(score, 4)}


def _regressions(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[float]:
    from transformers import pipeline

    with model_folder.mistakes_named(folder, "model"):
        score = pipeline("text-classification", model=str(folder), batch_size=batch_size)
    inputs = [{"text": row.fields["text"], "text_pair": row.fields["text_pair"]} for row in rows]
    for answer in score(inputs, truncation=True):
        yield answer["score"]


@torch.no_grad()
def _cosines(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[float]:
    from transformers import AutoModel, AutoTokenizer

    with model_folder.mistakes_named(folder, "model"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        encoder = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    encoder.to("cuda" if torch.cuda.is_available() else "cpu")
    span = saved["highest"] - saved["lowest"]
    for start in range(0, len(rows), batch_size):
        first_BD, second_BD = (
            _vectors(encoder, tokenizer, [row.fields[name] for row in rows[start : start + batch_size]], saved)
            for name in ("text", "text_pair")
        )
        for cosine in nn.functional.cosine_similarity(first_BD, second_BD).tolist():
            yield saved["lowest"] + span * cosine


def _vectors(encoder: Any, tokenizer: Any, texts: list[str], saved: Mapping[str, Any]) -> torch.Tensor:
    inputs = tokenizer(texts, truncation=True, padding=True, return_tensors="pt").to(encoder.device)
    return pooled(encoder, inputs, saved["pooling"])
