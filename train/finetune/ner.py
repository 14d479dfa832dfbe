"""Named entities: a tag for each word. The first piece of a word carries its tag; every word of a file is judged."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from train.errors import DataError
from train.finetune import metrics, model_folder
from train.finetune.classification import cross_entropy
from train.finetune.conll import Conll, Sentence, read_conll
from train.finetune.packages import require
from train.finetune.rows import Row
from train.finetune.settings import Settings
from train.finetune.task import Feature, Scored, Task

_IGNORED = -100  # the label of pieces that are not the first of their word


class Window(NamedTuple):
    """A part of a sentence that is read at once: its words from `start` on, and the piece that each begins with."""

    sentence: int
    start: int
    first_pieces: list[int]


@dataclass(slots=True)
class Counts:
    """What became of the words and sentences of one file."""

    split_sentences: int = 0
    vanished_words: int = 0  # without a piece, such as control characters: read as [UNK]
    cut_words: int = 0  # longer than a whole window
    unknown_types: dict[str, int] = field(default_factory=dict)  # entities of types that training has not


def prepare(settings: Settings) -> Task:
    """Read and check all files. Raises UserError and DataError, with file and line of the first mistake."""
    require("accelerate", "seqeval")
    from transformers import AutoModelForTokenClassification, DataCollatorForTokenClassification

    config, length, tokenizer = model_folder.open_for(settings, split_words=True)
    files = _files(settings)
    tags = _tags(files["train"], settings)
    ids = {tag: number for number, tag in enumerate(tags)}
    config.num_labels = len(tags)
    config.id2label, config.label2id = dict(enumerate(tags)), ids
    counts = {split: Counts() for split in files}
    features, windows = {}, {}
    for split, found in files.items():
        _check_types(found, tags, settings, counts[split])
        features[split], windows[split] = _encoded(tokenizer, found.sentences, ids, length, counts[split])
    return Task(
        train=features["train"],
        validation=features["validation"],
        test=features.get("test"),
        tokenizer=tokenizer,
        build_model=lambda: model_folder.load_model(AutoModelForTokenClassification, settings.model, config),
        collator=DataCollatorForTokenClassification(tokenizer),
        score=lambda split, logits: _score(files[split].sentences, windows[split], tags, logits),
        decisive="entity_f1",
        found=[_tags_in_words(tags), *_files_in_words(files), *_counts_in_words(counts, length)],
        facts={"tags": tags} | {split: _facts(files[split], counts[split]) for split in files},
        rows={split: len(found.sentences) for split, found in files.items()},
        loss=cross_entropy,
    )


def _files(settings: Settings) -> dict[str, Conll]:
    paths = {"train": settings.train, "validation": settings.validation, "test": settings.test}
    scheme = settings.options["scheme"]
    return {split: read_conll(Path(path), scheme, repair=settings.repair) for split, path in paths.items() if path}


def _facts(found: Conll, counts: Counts) -> dict[str, Any]:
    words = sum(len(sentence.words) for sentence in found.sentences)
    return {"words": words, "scheme": found.scheme, "repaired": found.repaired} | asdict(counts)


# ---------------------------------------------------------------------------------------------------------------------
# Tags


def _tags(train: Conll, settings: Settings) -> list[str]:
    """O, and B- and I- of every type, whether or not both occur; sorted."""
    types = {tag[2:] for sentence in train.sentences for tag in sentence.tags if tag != "O"}
    if not types:
        raise DataError(f"{settings.train}: all words have the tag O: there is nothing to learn")
    return sorted(["O", *(f"{letter}-{kind}" for kind in types for letter in "BI")])


def _check_types(found: Conll, tags: Sequence[str], settings: Settings, counts: Counts) -> None:
    """With --repair entities of unknown types stay, as ones that are missed: leaving them out would flatter."""
    known = set(tags)
    for sentence in found.sentences:
        for tag, place in zip(sentence.tags, sentence.places, strict=True):
            if tag in known:
                continue
            if not settings.repair:
                types = ", ".join(sorted({other[2:] for other in tags if other != "O"}))
                raise DataError(
                    f"{place}: {tag}: {settings.train} has no entity of this type ({types}); --repair counts such "
                    "entities as missed"
                )
            if tag.startswith("B-"):
                counts.unknown_types[tag[2:]] = counts.unknown_types.get(tag[2:], 0) + 1


# ---------------------------------------------------------------------------------------------------------------------
# Pieces


def _encoded(
    tokenizer: Any, sentences: Sequence[Sentence], ids: Mapping[str, int], length: int, counts: Counts
) -> tuple[list[Feature], list[Window]]:
    """The windows of all sentences in order: each word in one window, with the label of its tag at its first piece."""
    room = length - tokenizer.num_special_tokens_to_add()
    readable, sizes = _readable(tokenizer, sentences, counts)
    parts = [part for number, own in enumerate(sizes) for part in _parts(number, own, room, counts)]
    words = [readable[number][start:end] for number, start, end in parts]
    read = tokenizer(words, is_split_into_words=True, truncation=True, max_length=length)
    features, windows = [], []
    for index, (number, start, end) in enumerate(parts):
        feature: Feature = {name: values[index] for name, values in read.items()}
        firsts = _first_pieces(read.word_ids(index))
        labels = [_IGNORED] * len(feature["input_ids"])
        for tag, position in zip(sentences[number].tags[start:end], firsts, strict=True):
            labels[position] = ids.get(tag, _IGNORED)
        features.append(feature | {"labels": labels})
        windows.append(Window(number, start, firsts))
    return features, windows


def _readable(tokenizer: Any, sentences: Sequence[Sentence], counts: Counts) -> tuple[list[list[str]], list[list[int]]]:
    """(words, number of pieces of each word); a word without any becomes the unknown token, and is counted."""
    everything = [list(sentence.words) for sentence in sentences]
    read = tokenizer(everything, is_split_into_words=True, add_special_tokens=False, verbose=False)
    sizes = []
    for number, words in enumerate(everything):
        own = [0] * len(words)
        for word in read.word_ids(number):
            own[word] += 1
        for index, size in enumerate(own):
            if not size:
                words[index], own[index] = tokenizer.unk_token or tokenizer.mask_token, 1
                counts.vanished_words += 1
        sizes.append(own)
    return everything, sizes


def _parts(number: int, sizes: Sequence[int], room: int, counts: Counts) -> Iterator[tuple[int, int, int]]:
    """(sentence, start, end): as many whole words as have room; of a word longer than that its beginning."""
    start, used = 0, 0
    for index, size in enumerate(sizes):
        counts.cut_words += size > room
        if used + min(size, room) > room:
            yield number, start, index
            start, used = index, 0
        used += min(size, room)
    counts.split_sentences += start > 0
    yield number, start, len(sizes)


def _first_pieces(words: Sequence[int | None]) -> list[int]:
    """Where each word begins."""
    return [at for at, word in enumerate(words) if word is not None and (at == 0 or words[at - 1] != word)]


# ---------------------------------------------------------------------------------------------------------------------
# Scores, and words for the user


def _score(sentences: Sequence[Sentence], windows: Sequence[Window], tags: Sequence[str], logits: np.ndarray) -> Scored:
    """Over every word of the file, whatever window it was read in."""
    predicted: list[list[str]] = [[] for _ in sentences]
    for window, scores in zip(windows, logits, strict=True):
        predicted[window.sentence] += [tags[number] for number in scores[window.first_pieces].argmax(-1)]
    found, by_type = metrics.entities([sentence.tags for sentence in sentences], predicted)
    answers = [
        {"place": sentence.places[0], "words": sentence.words, "tags": sentence.tags, "predicted": own}
        for sentence, own in zip(sentences, predicted, strict=True)
    ]
    return found | {f"{metrics.OF_TYPE}{kind}": row["f1"] for kind, row in by_type.items()}, answers


def _tags_in_words(tags: Sequence[str]) -> str:
    types = sorted({tag[2:] for tag in tags if tag != "O"})
    return f"{len(types)} types of entities: {', '.join(types[:12])}{' ...' if len(types) > 12 else ''}."


def _files_in_words(files: Mapping[str, Conll]) -> list[str]:
    lines = []
    if others := [f"{split} from {found.scheme.upper()}" for split, found in files.items() if found.scheme != "bio"]:
        lines.append(f"Tags made BIO: {', '.join(others)}.")
    if repaired := [f"{found.repaired:,} in {split}" for split, found in files.items() if found.repaired]:
        lines.append(f"Tags repaired: {', '.join(repaired)}.")
    return lines


def _counts_in_words(counts: Mapping[str, Counts], length: int) -> list[str]:
    kinds = (
        (f"Sentences longer than {length} tokens, read in parts", "split_sentences"),
        ("Words that the tokenizer makes nothing of, read as unknown", "vanished_words"),
        (f"Words longer than {length} tokens, cut", "cut_words"),
    )
    lines = []
    for words, name in kinds:
        if parts := [f"{getattr(own, name):,} in {split}" for split, own in counts.items() if getattr(own, name)]:
            lines.append(f"{words}: {', '.join(parts)}.")
    for split, own in counts.items():
        if own.unknown_types:
            types = ", ".join(f"{number:,} {kind}" for kind, number in own.unknown_types.items())
            lines.append(f"Entities of {split} that count as missed, of types that training has not: {types}.")
    return lines


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


def predict(folder: Path, rows: Sequence[Row], saved: Mapping[str, Any], batch_size: int) -> Iterator[dict[str, Any]]:
    """The entities of each text with their characters [start, end), by transformers' own pipeline."""
    from transformers import AutoTokenizer, pipeline

    with model_folder.mistakes_named(folder, "model"):
        length = AutoTokenizer.from_pretrained(folder, local_files_only=True).model_max_length
        stride = {"stride": length // 4} if length < 1 << 20 else {}  # parts of a long text overlap
        find = pipeline("token-classification", model=str(folder), aggregation_strategy="first", **stride)
    warnings.filterwarnings("ignore", "Tokenizer does not support real words")  # of byte-level ones: words by spaces
    for row in rows:
        text = row.fields["text"]
        entities = [
            {
                "type": entity["entity_group"],
                "text": text[entity["start"] : entity["end"]],
                "start": entity["start"],
                "end": entity["end"],
                "score": round(float(entity["score"]), 4),
            }
            for entity in (find(text) if text.strip() else [])
        ]
        yield dict(row.fields) | {"entities": entities}
