"""Token frequencies of a mixture: those of what is read, not of its first source."""

import io
import json
import math
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data_pipeline.manifest import Manifest, Split, write_manifest
from train.config import Config
from train.config_file import load_config
from train.training_data import token_shares
from train.vocabulary import load_vocabulary

SPECIALS = {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4}
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c"]
ENGLISH, CHINESE = [0, 1, 0, 0, 0, 70, 20, 9], [0, 0, 0, 0, 0, 1, 5, 4]  # 100 and 10 tokens


@pytest.fixture
def counted(tmp_path: Path) -> Callable[[list[int]], Manifest]:
    """A data set without shards whose tokens were counted so."""

    def make(counts: list[int]) -> Manifest:
        folder = tmp_path / f"set-{len(list(tmp_path.iterdir()))}"
        (folder / "tokenizer").mkdir(parents=True)
        vocabulary = {token: number for number, token in enumerate(TOKENS)}
        content = json.dumps({"added_tokens": [], "model": {"type": "WordPiece", "vocab": vocabulary}}).encode()
        (folder / "tokenizer" / "tokenizer.json").write_bytes(content)
        array = io.BytesIO()
        np.save(array, np.array(counts, dtype=np.int64))
        (folder / "token-counts.npy").write_bytes(array.getvalue())
        return write_manifest(
            folder,
            token_dtype="uint16",  # noqa: S106 - no secret
            vocabulary_size=len(TOKENS),
            special_ids=SPECIALS,
            tokenizer_checksum=xxhash.xxh3_128_hexdigest(content),
            settings={},
            splits={"train": Split(0, 0, ())},
            token_counts_checksum=xxhash.xxh3_128_hexdigest(array.getvalue()),
        )

    return make


@pytest.mark.parametrize(("shares", "most_frequent"), [((0.5, 0.5), 5), ((0.1, 0.9), 6), ((1, 0), 5), ((0, 1), 6)])
def test_frequencies_are_those_of_the_mixture(
    counted: Callable, shares: tuple[float, float], most_frequent: int
) -> None:
    """Reference: fractions, token by token; how many tokens a source has does not matter."""
    found = load_vocabulary(counted(ENGLISH), counted(CHINESE), shares=shares)
    entropy = 0.0
    for english, chinese in zip(ENGLISH, CHINESE, strict=True):
        chance = Fraction(shares[0]) * Fraction(english, 100) + Fraction(shares[1]) * Fraction(chinese, 10)
        entropy -= float(chance) * math.log(chance) if chance else 0
    assert found.most_frequent_id == most_frequent
    assert found.unigram_entropy == pytest.approx(entropy, rel=1e-12)


def test_a_source_without_tokens_changes_nothing(counted: Callable) -> None:
    """Reference: the other source alone."""
    alone = load_vocabulary(counted(ENGLISH))
    found = load_vocabulary(counted([0] * len(TOKENS)), counted(ENGLISH), shares=(0.4, 0.6))
    assert found.most_frequent_id == alone.most_frequent_id
    assert found.unigram_entropy == pytest.approx(alone.unigram_entropy, rel=1e-12)


def config_of(*overrides: str) -> Config:
    return load_config(
        Path(__file__).parents[3] / "configs" / "demo.yaml",
        ["run.steps=100", "schedule.warmup_steps=1", *(overrides or ["data.path=/a"])],
    )


def test_the_share_of_a_source_is_that_of_the_tokens_of_all_steps() -> None:
    """Reference: the tokens of each step counted one after another, all rows full."""
    sources = "data.sources=[{name: a, path: /a, weight: 3}, {name: b, path: /b, weight: 1}]"
    changes = [sources, "data.weights_at=[{step: 10, weights: [1, 1]}, {step: 200, weights: [1, 9]}]"]
    changes += ["data.sequence_length=64", "data.sequence_length_at=[{step: 60, length: 128}]"]
    for same, later in (("false", 2), ("true", 1)):
        tokens = [0.0, 0.0]
        for step in range(100):
            for k, share in enumerate((0.75, 0.25) if step < 10 else (0.5, 0.5)):
                tokens[k] += share * (later if step >= 60 else 1)
        expected = [part / sum(tokens) for part in tokens]
        config = config_of(*changes, f"batch.same_tokens_per_step={same}")
        assert token_shares(config) == pytest.approx(expected, rel=1e-12)
    assert token_shares(config_of()) == (1.0,)
