"""The three measures against slow references, and the readers of their data."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from train.config import Probes
from train.errors import BertmaeError
from train.probes.classification import classification_probe
from train.probes.command import probe_settings
from train.probes.open import open_probes
from train.probes.probe import Probe, chosen, measured
from train.probes.retrieval import mean_ndcg, retrieval_probe
from train.probes.similarity import cosine_spearman, similarity_probe

TASKS = Path(__file__).parents[4] / "shared" / "data" / "tasks"


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def slow_ndcg(scores: list[float], gains: dict[int, int], depth: int) -> float:
    """Järvelin and Kekäläinen 2002 with gains as they are, document by document."""
    order = sorted(range(len(scores)), key=lambda document: (-scores[document], document))
    found = sum(gains.get(order[i], 0) / math.log2(i + 2) for i in range(min(depth, len(order))))
    best = sorted(gains.values(), reverse=True)
    return found / sum(best[i] / math.log2(i + 2) for i in range(min(depth, len(best))))


def test_ndcg_equals_the_definition_also_with_ties_and_few_documents():
    """Reference: the formula written out. Scores are of a few values, so that many are equal."""
    draw = random.Random(0)
    for documents in (3, 10, 40):
        scores = [[draw.randrange(5) / 4 for _ in range(documents)] for _ in range(20)]
        gains = [{d: draw.randrange(1, 5) for d in draw.sample(range(documents), 3)} for _ in range(20)]
        expected = sum(slow_ndcg(s, g, 10) for s, g in zip(scores, gains, strict=True)) / 20
        assert mean_ndcg(np.array(scores), gains) == pytest.approx(expected, abs=1e-12)


def test_ndcg_is_1_for_the_best_order_and_sees_no_further_than_ten():
    assert mean_ndcg(np.array([[0.9, 0.8, 0.1]]), [{0: 4, 1: 2}]) == 1.0
    scores = np.arange(20.0)[None, ::-1]
    assert mean_ndcg(scores, [{10: 1}]) == 0.0
    assert mean_ndcg(scores, [{9: 1}]) == pytest.approx(1 / math.log2(11))


def test_spearman_is_the_correlation_of_ranks_of_cosines():
    """Reference: Pearson's correlation of mean ranks, computed pair by pair. The lengths of vectors do not count."""
    draw = np.random.default_rng(0)
    a_PD, b_PD = draw.normal(size=(2, 30, 4)).astype(np.float32)
    scores = [float(score) for score in draw.integers(0, 4, 30)]
    cosines = [float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)) for a, b in zip(a_PD, b_PD, strict=True)]

    def ranks(values: list[float]) -> list[float]:
        return [sum(x < v for x in values) + (sum(x == v for x in values) + 1) / 2 for v in values]

    expected = np.corrcoef(ranks(cosines), ranks(scores))[0, 1]
    assert cosine_spearman(a_PD, b_PD, scores) == pytest.approx(expected, abs=1e-9)
    assert cosine_spearman(1000 * a_PD, b_PD, scores) == pytest.approx(expected, abs=1e-9)
    assert math.isnan(cosine_spearman(np.ones_like(a_PD), np.ones_like(b_PD), scores))


def vectors_of(probe: Probe, direction: str) -> np.ndarray:
    """Noise, and in the first channel whether a text holds a word: a little of it, on a scale of its own."""
    vectors = np.random.default_rng(0).normal(size=(len(probe.texts), 8)).astype(np.float32)
    vectors[:, 0] = [0.002 * (direction in text) for text in probe.texts]
    return vectors


def test_the_linear_probe_finds_what_is_linear_and_nothing_in_noise(tmp_path):
    """Reference: labels that follow from one small channel, and labels that follow from none."""
    draw = random.Random(1)
    rows = [{"text": f"row {i} {'good' if i % 2 else 'bad'}", "label": i % 2} for i in range(200)]
    draw.shuffle(rows)
    probe = classification_probe("x", write(tmp_path / "rows.jsonl", rows), 1000)
    assert len(probe.texts) == 200 and "160 of 160 rows to fit, 40 of 40" in probe.words
    assert probe.measure(vectors_of(probe, "good")) == 1.0
    assert 0.2 < probe.measure(vectors_of(probe, "nothing")) < 0.8
    assert 0.3 < probe.trivial < 0.7
    found = measured(probe, {"cls": np.full((200, 8), np.nan, dtype=np.float32)})
    assert math.isnan(found.record()["probe_x_cls_accuracy"])


def test_a_folder_has_its_own_split_and_validation_comes_before_test(tmp_path):
    """Reference: the files. Numbers and texts may be labels."""
    for split, count in (("train", 6), ("test", 4), ("dev", 2)):
        write(tmp_path / f"{split}.jsonl", [{"text": f"{split}{i}", "label": f"l{i % 2}"} for i in range(count)])
    probe = classification_probe("x", tmp_path, 1000)
    assert list(probe.texts) == [*(f"train{i}" for i in range(6)), "dev0", "dev1"]


def test_what_is_taken_of_a_large_file_is_spread_and_always_the_same():
    """Reference: values written down once; a change would break every curve."""
    taken = chosen(range(1000), 10, "sst2")
    assert taken == chosen(range(1000), 10, "sst2") == sorted(taken) and len(set(taken)) == 10
    assert taken == TAKEN
    assert chosen(range(5), 10, "sst2") == list(range(5)) and chosen(range(1000), 10, "other") != taken


TAKEN = [25, 157, 196, 225, 264, 428, 480, 591, 725, 890]


def beir(folder: Path, qrels: str) -> Path:
    write(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": "t" if i else "", "text": f"doc{i}"} for i in range(50)])
    write(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query{i}"} for i in range(5)])
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_retrieval_keeps_what_is_relevant_of_a_corpus_that_is_too_large(tmp_path):
    """Reference: every query's own relevant documents, found by their text. With vectors that put them first, nDCG is
    1; queries without a positive judgement do not count."""
    lines = ["query-id\tcorpus-id\tscore", "q0\td1\t2", "q0\td40\t1", "q1\td7\t1", "q2\td9\t0", "q3\td33\t3"]
    probe = retrieval_probe("x", beir(tmp_path, "\n".join(lines) + "\n"), 12)
    assert probe.words == "3 of 3 queries over 12 of 50 documents"
    assert {"t doc1", "t doc40", "t doc7", "t doc33", "query0", "query1", "query3"} <= set(probe.texts)
    assert len(probe.texts) == 15
    places = {text: i for i, text in enumerate(probe.texts)}
    vectors = np.zeros((15, 3), dtype=np.float32)
    for channel, (query, documents) in enumerate({0: ("1", "40"), 1: ("7",), 3: ("33",)}.items()):
        vectors[places[f"query{query}"], channel] = 1
        for rank, document in enumerate(documents):
            vectors[places[f"t doc{document}"]] = 0.1
            vectors[places[f"t doc{document}"], channel] = 1 - 0.1 * rank
    assert probe.measure(vectors) == 1.0
    vectors[12:] *= -1  # the queries
    assert probe.measure(vectors) < 0.7
    fewer = retrieval_probe("x", tmp_path, 2)
    assert fewer.words.startswith(("1 of 3", "2 of 3")) and len(fewer.texts) <= 4


MISTAKES = [
    ("classification", [{"text": "a", "label": 1}] * 9, 3, "have one label"),
    ("classification", [{"text": "a"}] * 9, 3, "rows.jsonl:1: no 'label'"),
    ("classification", [{"text": "a", "label": 1}, {"text": 3, "label": 0}] * 9, 3, ":2: 'text' is 3"),
    ("classification", [{"text": "a", "label": 1}], 3, "1 rows: too few"),
    ("similarity", [{"a": "x", "b": "y", "score": "high"}], 3, ":1: no 'score' that is a number"),
    ("similarity", [{"a": "x", "b": "y", "score": 1}] * 3, 3, "all pairs have one score"),
    ("similarity", [{"a": "x", "score": 1}, {"a": "x", "b": "y", "score": 2}], 3, ":1: 'b' is missing"),
]


@pytest.mark.parametrize(("kind", "rows", "code", "part"), MISTAKES)
def test_bad_rows_are_named_with_their_line(kind, rows, code, part, tmp_path):
    path = write(tmp_path / "rows.jsonl", rows)
    settings = Probes.model_validate({kind: [{"name": "x", "path": str(path)}]})
    with pytest.raises(BertmaeError) as caught:
        open_probes(settings)
    assert caught.value.exit_code == code and part in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("qrels", "part"),
    [
        ("q0\td1\n", "test.tsv:1: not a query, a document and a whole number"),
        ("query-id\tcorpus-id\tscore\nq9\td1\t1\n", "test.tsv:2: no query q9"),
        ("q0\td99\t1\n", "test.tsv:1: no document d99"),
        ("q0\td1\t0\n", "no document is relevant to any query"),
    ],
)
def test_bad_judgements_are_named_with_their_line(qrels, part, tmp_path):
    with pytest.raises(BertmaeError) as caught:
        retrieval_probe("x", beir(tmp_path, qrels), 100)
    assert caught.value.exit_code == 3 and part in str(caught.value)


def test_folders_that_are_not_there_or_not_laid_out_so_are_one_line(tmp_path):
    for opener, path, part in (
        (retrieval_probe, tmp_path / "none", "no such folder"),
        (retrieval_probe, tmp_path, "no corpus.jsonl: a folder for retrieval has"),
        (classification_probe, tmp_path, "a folder for the linear probe has train.jsonl"),
        (similarity_probe, tmp_path / "none.jsonl", "cannot be read"),
    ):
        with pytest.raises(BertmaeError, match=part) as caught:
            opener("x", path, 100)
        assert caught.value.exit_code == 2


def test_the_command_names_sets_by_their_files(tmp_path):
    """Reference: file and folder names; two equal ones are a mistake, and so is none at all."""
    (tmp_path / "cls-sst2").mkdir()
    path = write(tmp_path / "en-dev.jsonl", [{}])
    settings = probe_settings({"classification": [str(tmp_path / "cls-sst2")], "similarity": [str(path)]}, 10, 64)
    assert [settings.classification[0].name, settings.similarity[0].name] == ["cls-sst2", "en-dev"]
    for given, part in (({"similarity": [str(path), str(path)]}, "named en-dev, like"), ({}, "nothing to measure")):
        with pytest.raises(BertmaeError, match=part):
            probe_settings(given, 10, 64)


@pytest.mark.skipif(not TASKS.is_dir(), reason="the data sets beside the project are not there")
def test_real_data_sets_open_as_they_are():
    """Reference: the counts that their own descriptions give."""
    probes = [
        classification_probe("sst2", TASKS / "cls-sst2", 10**6),
        classification_probe("waimai", TASKS / "cls-waimai10k", 10**6),
        similarity_probe("stsb", TASKS / "sim-stsb" / "zh-dev.jsonl", 10**6),
        retrieval_probe("cranfield", TASKS / "ir-cranfield", 10**6),
    ]
    assert [len(probe.texts) for probe in probes] == [6920 + 872, 9655 + 1181, 2 * 1500, 1400 + 225]
    assert probes[0].trivial == pytest.approx(0.5, abs=0.02) and probes[1].trivial == pytest.approx(0.66, abs=0.02)
