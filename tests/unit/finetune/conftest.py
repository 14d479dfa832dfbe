"""Tiny models of every family with tokenizers of their own, and toy tasks that they learn in seconds."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

NAMES, PLACES = ("Ada", "Grace", "李明", "王芳"), ("Paris", "Oslo", "北京", "上海")
WORDS = ["the", "a", "film", "was", "seen", "in", "and", "by", "of", "我", "在", "看", "电", "影", "很", "了", "."]
GOOD, BAD = ("good", "fine", "funny", "好"), ("bad", "dull", "poor", "坏")
TEXTS = [" ".join((*NAMES, *PLACES, *WORDS, *GOOD, *BAD))] * 3
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


def _wordpiece() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # noqa: S106
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in zip(names, special, strict=True)}
    )


def _byte_level() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    names = ("cls", "pad", "sep", "unk", "mask")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in zip(names, special, strict=True)}
    )


def build(kind: str, folder: Path) -> Path:
    """A random model of 32 x 2 for 64 positions, in the form in which pretraining leaves one."""
    tokenizer = _wordpiece() if kind in ("bert", "eurobert") else _byte_level()
    sizes = SIZES | {"max_position_embeddings": 64, "vocab_size": len(tokenizer), "initializer_range": 0.1}
    sizes |= {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    if kind == "roberta":
        sizes |= {"type_vocab_size": 1, "max_position_embeddings": 64 + tokenizer.pad_token_id + 1}
    if kind == "modernbert":
        sizes |= {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
    if kind == "eurobert":
        sizes |= {"mask_token_id": tokenizer.mask_token_id, "num_key_value_heads": 2}
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(CONFIG_MAPPING[kind](**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family; one of each is made."""
    made: dict[str, Path] = {}

    def of(kind: str) -> Path:
        if kind not in made:
            made[kind] = build(kind, tmp_path_factory.mktemp("models") / kind)
        return made[kind]

    return of


def sentence(draw: random.Random, *words: str) -> str:
    own = [*draw.choices(WORDS, k=draw.randint(2, 5)), *words]
    draw.shuffle(own)
    return " ".join(own)


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> dict[str, str]:
    """Texts whose label is that of the one word that tells it: paths of train, validation and test."""
    folder, draw = tmp_path_factory.mktemp("reviews"), random.Random(1)
    for split, count in (("train", 192), ("validation", 50), ("test", 40)):
        rows = []
        for number in range(count):
            label, words = (("good", GOOD[:2]), ("bad", BAD[:2]))[number % 2]
            rows.append({"text": sentence(draw, draw.choice(words)), "label": label})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "validation", "test")}


@pytest.fixture(scope="session")
def entities(tmp_path_factory) -> dict[str, str]:
    """Sentences with names and places: paths of train, validation and test in CoNLL form."""
    folder, draw = tmp_path_factory.mktemp("entities"), random.Random(2)
    for split, count in (("train", 192), ("validation", 50), ("test", 40)):
        lines = []
        for _ in range(count):
            name, place = draw.choice(NAMES), draw.choice(PLACES)
            own = {name: "PER", place: "LOC"}
            for word in sentence(draw, name, place).split():
                kind = own.get(word)
                lines.append(f"{word}\tB-{kind}" if kind else f"{word}\tO")
                if kind == "PER":
                    lines.append("Li\tI-PER")
            lines.append("")
        (folder / f"{split}.conll").write_text("\n".join(lines))
    return {split: str(folder / f"{split}.conll") for split in ("train", "validation", "test")}


@pytest.fixture(scope="session")
def pairs(tmp_path_factory) -> dict[str, str]:
    """Pairs of texts with the share of words that they have in common, from 0 to 5."""
    folder, draw = tmp_path_factory.mktemp("pairs"), random.Random(3)
    for split, count in (("train", 192), ("validation", 60)):
        rows = []
        for _ in range(count):
            first = draw.sample(WORDS, 5)
            kept = draw.randint(0, 5)
            others = [word for word in WORDS if word not in first]
            second = first[:kept] + draw.sample(others, 5 - kept)
            # A word for each number besides, because a model this small does not learn to compare.
            second.append((*BAD[:3], *GOOD[:3])[kept])
            rows.append({"a": " ".join(first), "b": " ".join(second), "score": kept})
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {split: str(folder / f"{split}.jsonl") for split in ("train", "validation")}
