"""What training knows of a tokenizer, and the sentences that follow from it."""

import io
import json
import math
import re

import numpy as np
import pytest
import xxhash

from data_pipeline.errors import DataError
from data_pipeline.manifest import Split, write_manifest
from train.data.packing import PackingRules, RowPlan
from train.derived import describe
from train.vocabulary import load_vocabulary

SPECIAL = {"pad": 0, "unk": 3, "cls": 4, "sep": 5, "mask": 6}
TOKENS = ["[PAD]", "[unused1]", "[unused02]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "##s", "中", "unused1"]
TOKENS += ["[unused]", "[unusedx1]", "x[unused1]", "[domain]", "[kept]"]
COUNTS = np.array([0, 0, 0, 9, 0, 0, 0, 40, 7, 40, 1, 1, 0, 0, 2, 300], dtype=np.int64)


def description():
    """A tokenizer.json with the parts that count here; its vocabulary stands in no order."""
    added = [{"id": i, "content": token, "special": True} for i, token in enumerate(TOKENS) if i in SPECIAL.values()]
    added += [{"id": 14, "content": "[domain]", "special": True}, {"id": 15, "content": "[kept]", "special": False}]
    vocabulary = {token: i for i, token in reversed(list(enumerate(TOKENS)))}
    return {"added_tokens": added, "model": {"type": "WordPiece", "vocab": vocabulary}}


@pytest.fixture
def manifest_of(tmp_path):
    """The manifest of a data set without shards, with the given tokenizer.json and counts of tokens."""

    def make(content, counts=COUNTS, checksum=None):
        (tmp_path / "tokenizer").mkdir(exist_ok=True)
        (tmp_path / "tokenizer" / "tokenizer.json").write_bytes(content)
        array = io.BytesIO()
        np.save(array, counts)
        (tmp_path / "token-counts.npy").write_bytes(array.getvalue())
        return write_manifest(
            tmp_path,
            token_dtype="uint16",  # noqa: S106 - no secret
            vocabulary_size=len(counts),
            special_ids=SPECIAL,
            tokenizer_checksum=xxhash.xxh3_128_hexdigest(content) if checksum is None else checksum,
            settings={},
            splits={"train": Split(0, 0, ())},
            token_counts_checksum=xxhash.xxh3_128_hexdigest(array.getvalue()),
        )

    return make


@pytest.fixture
def vocabulary(manifest_of):
    """The vocabulary of the tokenizer above."""
    return load_vocabulary(manifest_of(json.dumps(description()).encode()))


def test_ordinary_ids_are_all_but_specials_and_unused_ones(vocabulary):
    """Reference: the tokens picked by hand; a token that only looks like [unusedN] is ordinary."""
    ordinary = ["the", "##s", "中", "unused1", "[unused]", "[unusedx1]", "x[unused1]", "[kept]"]
    assert vocabulary.ordinary_ids.tolist() == sorted(TOKENS.index(token) for token in ordinary)
    assert vocabulary.ordinary_ids.dtype == np.int64
    assert vocabulary.special_ids == SPECIAL
    assert vocabulary.size == len(TOKENS)


def test_unigram_entropy_and_the_most_frequent_id_are_those_of_the_counts(vocabulary):
    """Reference: a slow loop over the counts, in nats."""
    total, entropy = 0, 0.0
    for count in COUNTS.tolist():
        total += count
    for count in COUNTS.tolist():
        if count:
            entropy -= count / total * math.log(count / total)
    assert vocabulary.unigram_entropy == pytest.approx(entropy, rel=1e-12)
    assert vocabulary.most_frequent_id == 15


def test_the_entropy_of_equal_counts_is_the_log_of_their_number_and_of_no_counts_zero(manifest_of):
    """Reference: log V, and nothing to know."""
    content = json.dumps(description()).encode()
    flat = load_vocabulary(manifest_of(content, np.full(len(TOKENS), 10**12, dtype=np.int64)))
    assert flat.unigram_entropy == pytest.approx(math.log(len(TOKENS)), rel=1e-12)
    empty = load_vocabulary(manifest_of(content, np.zeros(len(TOKENS), dtype=np.int64)))
    assert empty.unigram_entropy == 0.0


NO_VOCABULARY = [b"", b"{", b"\xff", b"[]", b"{}", b'{"model": {}}', b'{"model": 0}', b'{"model": {"vocab": [1]}}']


@pytest.mark.parametrize("content", NO_VOCABULARY)
def test_a_tokenizer_without_a_vocabulary_is_refused_by_path(manifest_of, content):
    """Reference: the path of tokenizer.json."""
    with pytest.raises(DataError, match=r"tokenizer\.json: not a readable tokenizer\.json with a vocabulary") as caught:
        load_vocabulary(manifest_of(content))
    assert caught.value.exit_code == 3
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_tokenizer_is_refused_by_path(manifest_of):
    """Reference: the path of tokenizer.json."""
    manifest = manifest_of(b"{}")
    (manifest.tokenizer_folder / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: .*No such file"):
        load_vocabulary(manifest)


def test_another_tokenizer_than_that_of_the_shards_is_refused(manifest_of):
    """Reference: the checksum in the manifest."""
    content = json.dumps(description()).encode()
    with pytest.raises(DataError, match="not the tokenizer of these shards"):
        load_vocabulary(manifest_of(content.replace(b"the", b"one"), checksum=xxhash.xxh3_128_hexdigest(content)))


# ---------------------------------------------------------------------------------------------------------------------
# Sentences


def plan_of(rows, tokens, sequence_length=16):
    """A plan with so many rows and tokens; what is in them does not matter here."""
    empty = np.empty(0, np.int64)
    arrays = (np.full(1, rows), np.arange(rows + 1), empty.astype(np.uint32), empty.astype(np.uint16))
    plan = RowPlan(PackingRules(sequence_length), *arrays, tokens, unread=(), digest="")
    return [("The training split", 1.0, plan)]


def test_the_sentences_say_what_will_happen(configure, vocabulary):
    """Reference: the numbers worked out by hand: 8 rows = 2 x 2 x 2; 50 rows = 7 steps of 8; 600 of 800 places."""
    config = configure("engine.ds_config=ds_configs/zero1.json")
    assert describe(config, 2, plan_of(50, 600), vocabulary) == [
        "Global batch 8 rows = 2 per device x 2 devices x 2 accumulation steps: at most 128 tokens per optimizer step.",
        "The training split packs into 50 rows of at most 16 tokens (25.00% unused): 7 steps per epoch, 14.29 epochs "
        "in 100 steps.",
        "The model has 0.00 M parameters (encoder 0.00 M) over a vocabulary of 16; objective mlm.",
        "DeepSpeed ZeRO stage 1 in fp32, with gradient checkpointing, adamw.",
        f"A model that knows only how often each token occurs has a loss of {vocabulary.unigram_entropy:.3f} nats.",
    ]


def test_every_batch_size_of_the_run_is_said(configure, vocabulary):
    """Reference: by hand: 24 rows = 2 x 2 x 6; of 32 tokens at the same tokens a step, 12 = 1 x 2 x 6; 10 steps of 8,
    30 of 24 and 60 of 48 are 3,680 rows. What comes after the last step is not said."""
    sizes = "batch.global_batch_size_at=[{step: 10, rows: 24}, {step: 40, rows: 48}, {step: 100, rows: 8}]"
    longer = ["model.encoder.max_position_embeddings=32", "data.sequence_length_at=[{step: 20, length: 32}]"]
    config = configure(sizes, *longer, "batch.same_tokens_per_step=true")
    first, second, third, data, *_ = describe(config, 2, plan_of(50, 600), vocabulary)
    assert first.startswith("Global batch 8 rows = 2 per device x 2 devices x 2 accumulation steps: at most 128 tokens")
    assert second == (
        "From step 10 on: global batch 24 rows = 2 per device x 2 devices x 6 accumulation steps: at most 384 tokens "
        "per optimizer step."
    )
    assert third == (
        "From step 40 on: global batch 24 rows = 1 per device x 2 devices x 12 accumulation steps: at most 768 tokens "
        "per optimizer step."
    )
    assert data.endswith("(25.00% unused): about 73.60 epochs in 100 steps of these sizes.")


def test_one_is_said_in_the_singular(configure, vocabulary):
    """Reference: the grammar."""
    config = configure("batch.micro_batch_size=8", "model.gradient_checkpointing=false")
    batch, data, _, arithmetic, _ = describe(config, 1, plan_of(8, 128), vocabulary)
    assert "8 per device x 1 device x 1 accumulation step:" in batch
    assert "(0.00% unused): 1 step per epoch, 100.00 epochs" in data
    assert "without gradient checkpointing" in arithmetic


def test_parameters_are_counted_as_they_are_built(configure, vocabulary):
    """Reference: BERT-base's layers by hand (7,087,872 each), with this vocabulary of 16 tokens; a decoder is told."""
    big = [
        "model.encoder.hidden_size=768",
        "model.encoder.num_hidden_layers=12",
        "model.encoder.num_attention_heads=12",
        "model.encoder.intermediate_size=3072",
        "model.encoder.max_position_embeddings=512",
    ]
    encoder = 12 * 7_087_872 + (16 + 512 + 2) * 768 + 2 * 768 + (768 * 768 + 768 + 2 * 768) + 16
    words = describe(configure(*big), 1, plan_of(8, 128), vocabulary)[2]
    assert f"has {encoder / 1e6:.1f} M parameters (encoder {encoder / 1e6:.1f} M) over" in words
    words = describe(configure(*big, "objective.name=mae"), 1, plan_of(8, 128), vocabulary)[2]
    pattern = r"The model has (\S+) M parameters \(encoder (\S+) M, decoder (\S+) M\) over .*; objective mae\."
    total, own, decoder = map(float, re.fullmatch(pattern, words).groups())
    assert own == round(encoder / 1e6, 1)
    # two layers of the encoder's size, and less than one more for what stands around them
    assert 2 * 7.1 < decoder < 3 * 7.1
    assert total == pytest.approx(own + decoder, abs=0.11)
