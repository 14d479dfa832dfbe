"""What the training benchmarks compare is what they say they compare."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.manifest import Manifest
from train.config import Config
from train.data.packing import PackingRules, plan_rows
from train.objectives.masking import Chance
from train.vocabulary import load_vocabulary

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))  # at the end: it has a data_pipeline.py

from mask_token_encoder import MaskTokenEncoder
from plain_training import bf16_update, fp32_update, open_stream, steps
from random_shards import random_shards
from trainer_peer import GroupedRows, _blocks

from train.model.encoder import build_encoder
from train.objectives import build_objective
from train.objectives.objective import Objective

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return random_shards(tmp_path_factory.mktemp("benchmark") / "set", 1_000_000, 300)


def make_config(name: str) -> Config:
    encoder = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    encoder |= {"max_position_embeddings": 64, "hidden_dropout_prob": 0.0}
    return Config.model_validate(
        {
            "run": {"seed": 1},
            "data": {"path": "unused", "sequence_length": 64},
            "model": {"encoder": encoder, "decoder": {"num_hidden_layers": 1}, "gradient_checkpointing": False},
            "objective": {"name": name},
            "optimizer": {"learning_rate": 1e-2},
            "batch": {"global_batch_size": 4, "micro_batch_size": 4},
        }
    )


def make_objective(name: str, manifest: Manifest) -> Objective:
    torch.manual_seed(0)
    return build_objective(make_config(name), load_vocabulary(manifest))


def test_rows_of_the_peer_are_the_documents_joined_and_cut(manifest: Manifest) -> None:
    """Reference: document after document in plain lists, [CLS] and [SEP] around each, cut every 64 tokens."""
    cls, sep = manifest.special_ids["cls"], manifest.special_ids["sep"]
    flat: list[int] = []
    for block in _blocks(manifest):
        bounds = block.offsets_D1.tolist()
        for start, stop in pairwise(bounds):
            flat += [cls, *block.ids_T[start:stop].tolist(), sep]
    rows = GroupedRows(manifest, 64, 10**9)
    assert len(rows) == len(flat) // 64
    assert rows.rows_NT.ravel().tolist() == flat[: len(rows) * 64]
    item = rows[0]
    assert item["input_ids"] == flat[:64]
    assert item["special_tokens_mask"] == [int(token in (cls, sep)) for token in flat[:64]]


def test_random_documents_fill_packed_rows(manifest: Manifest) -> None:
    """Reference: the manifest's counts; ids are ordinary ones, the most frequent far above the mean."""
    split = manifest.splits["train"]
    assert 0.9e6 < split.tokens < 1.1e6 and 500 < split.tokens / split.documents < 1_500
    assert plan_rows(manifest, "train", PackingRules(64)).padding_share < 0.01
    ids_T = np.concatenate([block.ids_T for block in _blocks(manifest)])
    assert ids_T.min() == 5 and ids_T.max() < 300
    assert np.bincount(ids_T).max() > 20 * len(ids_T) / 300


def test_an_encoder_with_mask_tokens_differs_only_in_what_it_sees(manifest: Manifest) -> None:
    """Reference: mae on the same batch: same targets; the encoder gets [MASK] exactly where mae drops a token."""
    own = make_objective("mae", manifest)
    config, vocabulary = make_config("mae"), load_vocabulary(manifest)
    other = MaskTokenEncoder(build_encoder(config.model, vocabulary), config, vocabulary, Chance(config.run.seed))
    other.load_state_dict(own.state_dict())
    stream = open_stream(manifest, config)
    batch = next(stream)[0][0].to(CPU)
    stream.close()
    selections = [objective.select(batch) for objective in (own, other)]
    flags_T = selections[0].chosen.flags_T
    assert torch.equal(flags_T, selections[1].chosen.flags_T)
    calls: list[tuple] = []
    for objective in (own, other):
        objective.encoder.register_forward_pre_hook(lambda _, arguments: calls.append(arguments))
    losses = [objective(batch, selection)[0] for objective, selection in zip((own, other), selections, strict=True)]
    (kept_K, *_), (seen_T, *_) = calls
    assert torch.equal(kept_K, batch.ids_T[~flags_T])
    assert torch.equal(seen_T, torch.where(flags_T, vocabulary.special_ids["mask"], batch.ids_T))
    assert losses[0] != losses[1]
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.05)  # untrained: both know nothing


@pytest.mark.parametrize("name", ["mlm", "mae", "retromae"])
@pytest.mark.parametrize("make_update", [fp32_update, bf16_update])
def test_the_plain_loop_trains(name: str, make_update: object, manifest: Manifest) -> None:
    """Reference: the loss of the same batch before training; weights in bf16 follow masters in fp32."""
    config, objective = make_config(name), make_objective(name, manifest)
    stream = open_stream(manifest, config)
    batch = next(stream)[0][0].to(CPU)
    selection = objective.select(batch)
    update = make_update(objective, config)
    before = objective(batch, selection)[0].sum().item()
    loop = steps(objective, stream, update, CPU)
    found = [next(loop) for _ in range(25)]
    stream.close()
    assert all(200 < step.tokens <= 256 and step.lengths_D.sum() == step.tokens for step in found)
    assert objective(batch, selection)[0].sum().item() < 0.97 * before
    dtypes = {parameter.dtype for parameter in objective.parameters()}
    assert dtypes == {torch.float32 if make_update is fp32_update else torch.bfloat16}
