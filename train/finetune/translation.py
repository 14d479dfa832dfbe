"""Machine translation: a pretrained encoder, and a decoder that writes the other language."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from train.errors import DataError, UserError
from train.finetune import parallel_text
from train.finetune.model_folder import longest_input, open_config, open_for, open_tokenizer
from train.finetune.packages import require
from train.finetune.parallel_text import Languages, SentencePair, read_pairs
from train.finetune.rows import Row, text_of
from train.finetune.rows import identity as identity_of_rows
from train.finetune.settings import Settings
from train.finetune.target_text import FOLDER, open_target, with_spacing
from train.finetune.target_text import text_of as decoded
from train.finetune.task import Feature, Scored, Task
from train.finetune.translation_model import build, decoder_origin
from train.finetune.translation_scores import Scorer
from train.model.quiet import quiet

_IGNORED = -100  # labels that do not count
_MOST_UNKNOWN = 0.2  # of the tokens of the target side
_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Vocabularies:
    """Both tokenizers and the lengths they are cut at."""

    source: Any
    target: Any
    max_length: int
    max_target_length: int


def prepare(settings: Settings) -> Task:
    """Read and check all pairs. Raises UserError and DataError for whatever is wrong with files and settings."""
    require("accelerate", "sacrebleu")
    _check(settings)
    languages = Languages(settings.options["source_language"], settings.options["target_language"])
    both = _vocabularies(settings)
    found: list[str] = []
    pairs = _read(settings, languages, found)
    features = {split: _features(both, some, split == "train", found, split) for split, some in pairs.items()}
    if not features["train"]:
        raise DataError(f"{settings.train}: no pair is within --max-length and --max-target-length")
    unknown = _unknown(both.target, features["train"], settings)
    scorers = {split: _scorer(both.target, some, languages) for split, some in pairs.items() if split != "train"}
    ceiling = scorers["validation"].score(_round_trip(both.target, [pair.target for pair in pairs["validation"]]))
    target_model = settings.options["target_model"]
    decoder = decoder_origin(settings.model, Path(target_model) if target_model else None, settings.options["decoder"])
    generation = _generation(settings, both)
    found += [decoder.words, *_in_words(scorers["validation"], ceiling, unknown, generation, both)]
    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=both.source,
        build_model=partial(build, settings.model, decoder, both.target, generation),
        collator=partial(collate, both, generation["decoder_start_token_id"]),
        score=partial(_score, both.target, pairs, scorers),
        decisive="log_likelihood",
        found=found,
        facts={
            "decoder": decoder.kind,
            "signatures": scorers["validation"].signatures(),
            "ceiling": ceiling,
            "unknown_target_tokens": unknown,
            "generation": generation,
        },
        rows={split: len(some) for split, some in pairs.items()},
        loss=partial(smoothed_loss, smoothing=settings.options["label_smoothing"]),
        generation=generation,
        reduce=log_likelihoods,
        watch=_mean_log_likelihood,
        save_beside=partial(_save_target, both.target),
        identity=partial(_identity, languages),
        saved={"languages": [languages.source, languages.target], "max_length": both.max_length},
    )


Pairs = Mapping[str, Sequence[SentencePair]]  # of each split


def _read(settings: Settings, languages: Languages, found: list[str]) -> dict[str, list[SentencePair]]:
    named = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    pairs: dict[str, list[SentencePair]] = {}
    for split, origin in named.items():
        if origin:
            pairs[split], empty = read_pairs(origin, languages, settings.repair)
            found += [f"{origin}: {empty:,} pairs with an empty side are left out."] if empty else []
    return pairs


def _scorer(tokenizer: Any, pairs: Sequence[SentencePair], languages: Languages) -> Scorer:
    return Scorer([pair.target for pair in pairs], languages.target, _loses_capitals(tokenizer))


def _score(
    tokenizer: Any, pairs: Pairs, scorers: Mapping[str, Scorer], split: str, ids: npt.NDArray[np.int64]
) -> Scored:
    """Metrics of generated ids [rows, tokens], which the Trainer pads with -100, and what they say."""
    translations = decoded(tokenizer, np.where(ids < 0, tokenizer.pad_token_id, ids).tolist())
    rows = [
        {"source": pair.source, "translation": text, "reference": pair.target}
        for pair, text in zip(pairs[split], translations, strict=True)
    ]
    return scorers[split].score(translations), rows


def smoothed_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, smoothing: float = 0.0) -> Any:
    """Mean cross-entropy over the target tokens of the whole global batch; smoothed in training alone."""
    logits = outputs["logits"].float().flatten(0, -2)
    smoothing = smoothing if torch.is_grad_enabled() else 0.0
    total = F.cross_entropy(logits, labels.flatten(), ignore_index=_IGNORED, reduction="sum", label_smoothing=smoothing)
    return total / (num_items_in_batch if num_items_in_batch is not None else labels.ne(_IGNORED).sum().clamp(min=1))


def log_likelihoods(outputs: Any, labels: torch.Tensor) -> torch.Tensor:
    """[rows, 2]: log-likelihood of each row's target, and its tokens. All that validation has to keep of the logits."""
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    losses = F.cross_entropy(logits.float().transpose(1, 2), labels, ignore_index=_IGNORED, reduction="none")
    return torch.stack([-losses.sum(1), labels.ne(_IGNORED).sum(1).float()], dim=1)


def _mean_log_likelihood(sums: npt.NDArray[np.float32]) -> dict[str, float]:
    total, tokens = sums.astype(np.float64).sum(0).tolist()
    return {"log_likelihood": total / tokens}


def collate(vocabularies: Vocabularies, start: int, features: list[Feature]) -> dict[str, torch.Tensor]:
    """One batch, padded on the right; the decoder reads `start` and then what it should have written so far.

    Without labels, for generation, there is nothing for the decoder to read.
    """
    source = vocabularies.source
    names = [name for name in features[0] if name != "labels"]
    bare = [{name: feature[name] for name in names} for feature in features]
    padded = source.pad(bare, padding_side="right", pad_to_multiple_of=_MULTIPLE, return_tensors="pt", verbose=False)
    if "labels" not in features[0]:
        return dict(padded)
    longest = max(len(feature["labels"]) for feature in features)
    width = -(-longest // _MULTIPLE) * _MULTIPLE
    labels = torch.full((len(features), width), _IGNORED)
    for row, feature in enumerate(features):
        labels[row, : len(feature["labels"])] = torch.tensor(feature["labels"])
    read = labels.roll(1, dims=1)
    read[:, 0] = start
    read = read.masked_fill(read == _IGNORED, vocabularies.target.pad_token_id)
    return {**padded, "decoder_input_ids": read, "labels": labels}


def predict(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """The translation of each text by the model's own generation settings."""
    from transformers import EncoderDecoderModel

    config = open_config(folder)
    source = open_tokenizer(folder, config.encoder, saved.get("max_length") or longest_input(config.encoder))
    target = open_target(folder)
    with quiet():
        model = EncoderDecoderModel.from_pretrained(folder, local_files_only=True, weights_only=True).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    for first in range(0, len(rows), batch_size):
        some = rows[first : first + batch_size]
        texts = [text_of(row, "text") for row in some]
        batch = source(texts, truncation=True, padding=True, padding_side="right", return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**batch.to(model.device))
        for row, translation in zip(some, decoded(target, ids.tolist()), strict=True):
            yield dict(row.fields) | {"translation": translation}


def _check(settings: Settings) -> None:
    options = settings.options
    for name in ("source_language", "target_language"):
        if not options[name]:
            raise UserError(
                f"translation: --{name.replace('_', '-')} is missing; --source-language en --target-language zh read "
                "PREFIX.en and PREFIX.zh, or the columns en and zh"
            )
    if options["source_language"] == options["target_language"]:
        raise UserError(f"--target-language {options['target_language']}: that is the source language")
    if options["target_model"] and not Path(options["target_model"]).is_dir():
        raise UserError(f"--target-model {options['target_model']}: no such folder; models are read from local folders")
    if not 0 <= options["label_smoothing"] < 1:
        raise UserError(f"--label-smoothing {options['label_smoothing']}: must be 0 or more and below 1")
    for name in ("num_beams", "max_target_length"):
        if options[name] is not None and options[name] < 1:
            raise UserError(f"--{name.replace('_', '-')} {options[name]}: must be above 0")


def _vocabularies(settings: Settings) -> Vocabularies:
    _, length, source = open_for(settings)
    folder = Path(settings.options["target_model"] or settings.model)
    target_config = open_config(folder)
    asked, limit = settings.options["max_target_length"], min(longest_input(target_config), 512)
    if asked is not None and asked > limit:
        raise UserError(f"--max-target-length {asked}: a decoder from {folder} has positions for {limit} tokens")
    target_length = asked or min(settings.kind.max_length, limit)
    target = with_spacing(open_tokenizer(folder, target_config, target_length))
    return Vocabularies(source, target, length, target_length)


def _features(
    vocabularies: Vocabularies, pairs: Sequence[SentencePair], training: bool, found: list[str], split: str
) -> list[Feature]:
    """Token ids of each pair. Too long a pair is left out of training, and a source cut elsewhere."""
    read = vocabularies.source([pair.source for pair in pairs], split_special_tokens=True, verbose=False)
    kept: list[Feature] = []
    long_sources = long_targets = 0
    written = _labels(vocabularies.target, [pair.target for pair in pairs])
    for row, labels in enumerate(written):
        long_source = len(read["input_ids"][row]) > vocabularies.max_length
        long_target = len(labels) > vocabularies.max_target_length
        long_sources, long_targets = long_sources + long_source, long_targets + long_target
        if training and (long_source or long_target):
            continue
        feature = {name: values[row] for name, values in read.items()}
        if long_source:
            short = vocabularies.source(
                pairs[row].source, split_special_tokens=True, truncation=True, max_length=vocabularies.max_length
            )
            feature = dict(short)
        kept.append(feature | {"labels": labels[: vocabularies.max_target_length]})
    if long_sources + long_targets:
        what = "left out" if training else "cut, references apart"
        found.append(
            f"{split}: {long_sources:,} sources beyond {vocabularies.max_length} tokens and {long_targets:,} targets "
            f"beyond {vocabularies.max_target_length} are {what}."
        )
    return kept


def _labels(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """The tokens of each text and the end; the decoder's start is no label."""
    encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return [[*ids, _end(tokenizer)] for ids in encoded["input_ids"]]


def _start(tokenizer: Any) -> int:
    return int(tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id)


def _end(tokenizer: Any) -> int:
    return int(tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id)


def _unknown(tokenizer: Any, features: Sequence[Feature], settings: Settings) -> float:
    """Share of the target's tokens that the vocabulary has not. Raises UserError where it cannot write the language."""
    labels = [label for feature in features for label in feature["labels"]]
    share = labels.count(tokenizer.unk_token_id) / len(labels) if tokenizer.unk_token_id is not None else 0.0
    if share > _MOST_UNKNOWN:
        raise UserError(
            f"{share:.0%} of the tokens of {settings.train} in {settings.options['target_language']} are not in the "
            f"vocabulary of {settings.options['target_model'] or settings.model}: give --target-model, a BERT of that "
            "language, for the decoder"
        )
    return share


def _loses_capitals(tokenizer: Any) -> bool:
    return bool(tokenizer("Abc")["input_ids"] == tokenizer("abc")["input_ids"])


def _round_trip(tokenizer: Any, texts: list[str]) -> list[str]:
    return decoded(tokenizer, _labels(tokenizer, texts))


def _generation(settings: Settings, vocabularies: Vocabularies) -> dict[str, Any]:
    """Settings of generate(), saved with the model."""
    target = vocabularies.target
    never = [target.unk_token_id, target.mask_token_id]
    return {
        "decoder_start_token_id": _start(target),
        "eos_token_id": _end(target),
        "pad_token_id": int(target.pad_token_id),
        "max_length": vocabularies.max_target_length + 1,  # the start counts
        "num_beams": settings.options["num_beams"],
        "length_penalty": settings.options["length_penalty"],
        "early_stopping": settings.options["num_beams"] > 1,
        "suppress_tokens": [int(token) for token in never if token is not None],
    }


def _in_words(
    scorer: Scorer, ceiling: Mapping[str, float], unknown: float, generation: Mapping[str, Any], both: Vocabularies
) -> list[str]:
    lower = f", {ceiling['bleu_lowercase']:.1f} in lower case" if "bleu_lowercase" in ceiling else ""
    unknown_words = f"; {unknown:.2%} of its tokens in training are unknown" if unknown else ""
    return [
        f"The target's vocabulary can write the references of validation with BLEU {ceiling['bleu']:.1f}{lower} at best"
        f"{unknown_words}.",
        f"The best checkpoint is that with the least loss in validation; BLEU (tokenizer {scorer.tokenizer}) and chrF "
        f"are measured at the end, with {generation['num_beams']} beams and up to {both.max_target_length} tokens.",
    ]


def _save_target(tokenizer: Any, output: Path) -> None:
    tokenizer.save_pretrained(output / FOLDER)


def _identity(languages: Languages, origin: str, rows: int) -> Mapping[str, Any]:
    if parallel_text.files(origin, languages):
        return parallel_text.identity(origin, languages, rows)
    return identity_of_rows(origin, rows)
