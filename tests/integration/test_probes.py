"""Probes through the engine, at one and two ranks and under ZeRO 0, 2 and 3, against transformers' own padded model."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertTokenizerFast
from worker_ranks import on_ranks
from zero_worker import VOCABULARY, global_rows, joined, make_config

from train.config import Probes
from train.objectives import build_objective
from train.probes.command import embed
from train.probes.open import open_probes

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Path, dict]:
    """A run folder with a tokenizer of the model's 97 tokens, and one small set for each kind of probe."""
    folder = tmp_path_factory.mktemp("probes")
    draw = random.Random(0)

    def text() -> str:
        return " ".join(f"w{draw.randrange(5, 97)}" for _ in range(draw.randrange(1, 40)))

    def write(name: str, rows: list[dict]) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    (folder / "vocab.txt").write_text("\n".join([*SPECIALS, *(f"w{i}" for i in range(5, 97))]) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder / "run" / "tokenizer")
    for split in ("train", "dev"):
        write(f"labels/{split}.jsonl", [{"text": text(), "label": i % 2} for i in range(40)])
    write("pairs.jsonl", [{"a": text(), "b": text(), "score": i % 6} for i in range(40)])
    write("beir/corpus.jsonl", [{"_id": str(i), "title": "w9", "text": text()} for i in range(40)])
    write("beir/queries.jsonl", [{"_id": str(i), "text": text()} for i in range(6)])
    lines = [f"{i}\t{(3 * i + k) % 40}\t{1 + k}" for i in range(6) for k in range(2)]
    (folder / "beir/qrels").mkdir()
    (folder / "beir/qrels/test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    places = {"classification": "labels", "similarity": "pairs.jsonl", "retrieval": "beir"}
    return folder, {kind: [{"name": kind, "path": str(folder / place)}] for kind, place in places.items()}


@pytest.fixture(scope="module")
def results(data) -> dict[int, dict]:
    """What the worker measured, by the number of ranks."""
    folder, sets = data
    outputs = {world_size: folder / f"{world_size}.json" for world_size in (1, 2)}
    words = folder / "run", json.dumps(sets)
    return {size: on_ranks("probes_worker", size, output, *words, output) for size, output in outputs.items()}


def test_vectors_are_the_same_to_the_bit_at_any_number_of_ranks_and_any_zero_stage(results):
    """Reference: one rank without ZeRO. Several batches, of which the ranks have different numbers."""
    expected = results[1]["zero0"]
    for world_size, stages in results.items():
        for stage, found in stages.items():
            assert found["vectors"] == expected["vectors"], (world_size, stage)
            assert found["first"] == expected["first"], (world_size, stage)


def test_vectors_are_those_of_transformers_on_padded_texts(data, results, tmp_path):
    """Reference: transformers' own attention over padded batches, by which `python -m train probe` measures."""
    folder, sets = data
    torch.manual_seed(0)
    build_objective(make_config(0), VOCABULARY).encoder.masked_lm.save_pretrained(tmp_path / "model")
    tokenizer = BertTokenizerFast.from_pretrained(folder / "run" / "tokenizer")
    texts = [text for probe in open_probes(Probes.model_validate(sets | {"max_texts": 30})) for text in probe.texts]
    expected = embed(AutoModel.from_pretrained(tmp_path / "model").eval(), tokenizer, texts, 32)
    assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) > 32  # some are cut
    np.testing.assert_allclose(np.array(results[1]["zero0"]["vectors"]), expected, atol=2e-6)


def test_predictions_are_those_of_the_module_at_any_number_of_ranks_and_any_zero_stage(results):
    """Reference: the module without an engine."""
    torch.manual_seed(0)
    module = build_objective(make_config(0), VOCABULARY).eval()
    batch = joined(global_rows(7))
    expected = [guesses_N.tolist() for guesses_N in module.predictions(batch, module.select(batch))]
    assert [len(guesses) for guesses in expected] == module.target_counts(module.select(batch)).tolist()
    assert len(set(expected[0])) > 3  # a new decoder says the same everywhere
    for world_size, stages in results.items():
        for stage, found in stages.items():
            assert found["predicted"] == expected, (world_size, stage)


def test_probes_and_predictions_leave_no_trace_in_the_training(results):
    """Reference: the same updates without probes, weights and moments to the bit. The measures did move meanwhile."""
    for stages in results.values():
        for found in stages.values():
            assert found["unchanged"] and found["trains_again"]
            assert found["first"].keys() == found["second"].keys() and found["first"] != found["second"]


def test_a_request_to_stop_cuts_probes_short_on_all_ranks(results):
    """Reference: None everywhere, though the last rank alone was asked to, after its second batch."""
    for world_size, stages in results.items():
        for found in stages.values():
            assert found["cut_short"] == ["null"] * world_size


def test_every_probe_has_a_metric_for_each_pooling(results):
    expected = {
        f"probe_{kind}_{pool}_{metric}"
        for kind, metric in (("classification", "accuracy"), ("similarity", "spearman"), ("retrieval", "ndcg_at_10"))
        for pool in ("cls", "mean")
    }
    assert set(results[1]["zero0"]["first"]) == expected
