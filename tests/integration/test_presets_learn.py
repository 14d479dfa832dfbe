"""Every preset, made small, learns more from real text than how often each token occurs."""

import json
import pydoc_data.topics
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.__main__ import main as data_pipeline
from data_pipeline.manifest import Manifest, load_manifest
from train.config import Config
from train.config_file import load_config
from train.data.epochs import EpochWalk
from train.data.order import Cursor, Share
from train.data.packing import PackingRules, plan_rows
from train.objectives import build_objective
from train.objectives.objective import Objective
from train.optimizer import build_optimizer, learning_rate
from train.vocabulary import load_vocabulary

PRESETS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem != "demo")
LENGTH, ROWS, STEPS, LAST = 64, 32, 300, 50
SMALL = [
    f"data.sequence_length={LENGTH}",
    f"run.steps={STEPS}",
    "schedule.warmup_steps=20",
    "schedule.name=constant",
    "optimizer.learning_rate=3e-3",
    f"batch.global_batch_size={ROWS}",
    f"batch.micro_batch_size={ROWS}",
    "model.encoder.hidden_size=96",
    "model.encoder.num_hidden_layers=2",
    "model.encoder.num_attention_heads=3",
    "model.encoder.intermediate_size=256",
    "model.encoder.max_position_embeddings=66",
    "model.encoder.hidden_dropout_prob=0.0",
    "model.encoder.initializer_range=0.06",  # 0.02 is for widths of several hundred
    "model.decoder.num_hidden_layers=1",
    *(f"model.decoder.{name}=null" for name in ("hidden_size", "num_attention_heads", "intermediate_size")),
    "model.gradient_checkpointing=false",
    "objective.drop_ratio=0.4",  # more targets a step than 0.15
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Python's help topics, a paragraph a document, in pieces of a vocabulary of 400."""
    folder = tmp_path_factory.mktemp("text")
    paragraphs = [p for topic in pydoc_data.topics.topics.values() for p in topic.split("\n\n") if len(p) > 40]
    text, tokenizer, shards = folder / "text.jsonl", folder / "tokenizer", folder / "shards"
    text.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    command = ["tokenizer", "--input", text, "--output", tokenizer, "--vocab-size", 400]
    assert data_pipeline(list(map(str, command))) == 0
    command = ["build", "--input", text, "--tokenizer", tokenizer, "--output", shards, "--workers", 1]
    assert data_pipeline(list(map(str, command))) == 0
    return load_manifest(shards)


# Every time: masked language modelling, MAE beside it, RetroMAE, span corruption. The others take parts of these.
FAST = ("bert-base", "bertmae-base", "retromae-base", "span-corruption-base")
CASES = [pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem not in FAST else []) for p in PRESETS]


@pytest.mark.parametrize("preset", CASES)
def test_a_preset_becomes_better_than_the_token_frequencies(preset: Path, manifest: Manifest) -> None:
    """Reference: the entropy of the token frequencies in nats, and always guessing the most frequent token; the mean of
    the last 50 of 300 steps of 2,048 tokens, on one thread."""
    torch.set_num_threads(1)
    config = load_config(preset, [f"data.path={manifest.directory}", *SMALL])
    vocabulary = load_vocabulary(manifest)
    torch.manual_seed(0)
    objective = build_objective(config, vocabulary)
    losses_SH, hits_SH2 = trained(objective, config, manifest)
    for head, loss, (own, frequent) in zip(
        objective.heads, losses_SH[-LAST:].mean(0), hits_SH2[-LAST:].mean(0), strict=True
    ):
        if head != "bag_of_words":  # a distribution over the tokens of a document has another entropy
            assert loss < vocabulary.unigram_entropy - 0.15, (
                f"{head}: {loss:.3f}, tokens {vocabulary.unigram_entropy:.3f}"
            )
        assert own > 1.2 * frequent, head


def trained(objective: Objective, config: Config, manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    """Loss and hits per target of every step and head."""
    optimizer = build_optimizer(objective, config)
    walk = EpochWalk(manifest, "train", plan_rows(manifest, "train", PackingRules(LENGTH)), config.run.seed)
    cursor, share = Cursor(0, 0), Share(0, 1, ROWS, ROWS)
    losses, hits = [], []
    for step in range(STEPS):
        [batch] = walk.batches(cursor, share)
        cursor, batch = walk.advance(cursor, share), batch.to("cpu")
        selection = objective.select(batch, step)
        counts_H = objective.target_counts(selection).clip(min=1)
        losses_H, hits_H2 = objective(batch, selection)
        optimizer.zero_grad()
        (losses_H * torch.tensor(objective.weights()) / torch.from_numpy(counts_H)).sum().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config)
        optimizer.step()
        losses.append(losses_H.detach().numpy() / counts_H)
        hits.append(hits_H2.numpy() / counts_H[:, None])
    return np.array(losses), np.array(hits)
