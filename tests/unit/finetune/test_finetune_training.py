"""The training of every task: it learns, repeats itself, goes on where it was, and leaves what transformers opens."""

import json
import os
import shutil
import statistics
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from train.errors import NonFiniteError, StoppedError, UserError
from train.finetune import training
from train.finetune.predict import predict
from train.finetune.seeds import finetune_seeds
from train.finetune.settings import settings_for
from train.finetune.task import module
from train.finetune.training import finetune
from train.finetune.unknown_tokens import unknown_in_words
from train.signals import StopRequest

FAST = {"learning_rate": 3e-3, "warmup_ratio": 0.1, "global_batch_size": 16}


def settings(task, model, data, output, **further):
    return settings_for(task, model=model, output=output, **data, **(FAST | further))


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same(first, second, atol=0.0):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def trained(model, reviews, entities, pairs, tmp_path_factory):
    """{task: (settings, results)} of one fine-tuning of each."""
    folder = tmp_path_factory.mktemp("trained")
    data = {"classification": reviews, "ner": entities, "similarity": pairs}
    done = {}
    for task, files in data.items():
        own = settings(task, model("bert"), files, folder / task, epochs=3)
        done[task] = own, finetune(own)
    own = settings("similarity", model("bert"), pairs, folder / "cosine", method="cosine", epochs=3)
    done["cosine"] = own, finetune(own)
    return done


def test_every_task_learns_what_its_words_tell(trained):
    """Reference: the labels follow from single words, so that a model can know nearly all of them."""
    scores = {task: results["metrics"]["validation"] for task, (_, results) in trained.items()}
    assert scores["classification"]["accuracy"] > 0.85 and scores["classification"]["macro_f1"] > 0.85
    assert scores["ner"]["entity_f1"] > 0.9 and scores["ner"]["f1_of_PER"] > 0.8
    assert scores["similarity"]["spearman"] > 0.3 and scores["cosine"]["spearman"] > 0.8
    assert trained["classification"][1]["metrics"]["test"]["accuracy"] > 0.85


def test_the_folder_says_what_was_done(trained):
    """results.json, predictions that give the metric again, curves; no checkpoint and no pickle stays."""
    own, results = trained["classification"]
    assert json.loads((own.output / "results.json").read_text()) == json.loads(json.dumps(results))
    rows = [json.loads(line) for line in (own.output / "predictions-test.jsonl").read_text().splitlines()]
    right = statistics.fmean(row["label"] == row["predicted"] for row in rows)
    assert right == results["metrics"]["test"]["accuracy"] and len(rows) == results["data"]["test"]["rows"] == 40
    assert results["best_step"] <= results["steps"] == 36 and len(results["history"]) == 3
    best = max(entry["accuracy"] for entry in results["history"])
    assert best == results["metrics"]["validation"]["accuracy"]
    assert list((own.output / "tensorboard").glob("events*"))
    names = {path.name for path in own.output.iterdir()}
    assert "checkpoints" not in names and not any(name.endswith(".bin") for name in names)


def test_text_that_the_vocabulary_does_not_know_is_said(model, tmp_path):
    """Reference: two of three words are unknown to the vocabulary; special tokens do not count."""
    for word, expected in (("Paris", []), ("Atlantis", ["67% of the training tokens are unknown"])):
        rows = [{"text": f"{word} Paris {word}", "label": "a"}, {"text": f"{word} Oslo {word}", "label": "b"}]
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = dict.fromkeys(("train", "validation"), str(tmp_path / "rows.jsonl"))
        task = module("classification").prepare(settings("classification", model("bert"), files, tmp_path / "output"))
        found = unknown_in_words(task)
        assert [line[: line.index(" to the")] for line in found] == expected


def test_a_finished_fine_tuning_is_only_read(trained):
    own, results = trained["classification"]
    before = {path: path.stat().st_mtime_ns for path in own.output.iterdir()}
    assert finetune(own) == json.loads(json.dumps(results))
    assert {path: path.stat().st_mtime_ns for path in own.output.iterdir()} == before


def test_a_folder_of_something_else_is_refused(trained, reviews, tmp_path):
    own, _ = trained["classification"]
    with pytest.raises(UserError, match=r"holds a fine-tuning with learning_rate 0\.003, not 0\.1"):
        finetune(settings("classification", own.model, reviews, own.output, epochs=3, learning_rate=0.1))
    other = tmp_path / "test.jsonl"
    shutil.copy(reviews["validation"], other)
    with pytest.raises(UserError, match="with other test data"):
        finetune(settings("classification", own.model, reviews | {"test": str(other)}, own.output, epochs=3))
    (tmp_path / "thesis.txt").write_text("chapter 1")
    with pytest.raises(UserError, match="no fine-tuning of ours"):
        finetune(settings("classification", own.model, reviews, tmp_path))
    assert (tmp_path / "thesis.txt").read_text() == "chapter 1"


def test_two_processes_do_not_share_a_folder(trained, reviews, tmp_path):
    own, _ = trained["classification"]
    here = settings("classification", own.model, reviews, tmp_path / "out", max_steps=1)
    holder = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    here.output.mkdir()
    words = [sys.executable, "-c", holder, str(here.output / ".lock")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        with pytest.raises(UserError, match="another process works in this folder"):
            finetune(here)
        process.communicate(b"\n")


@pytest.mark.parametrize("kind", ["roberta", "modernbert", "eurobert"])
def test_every_family_is_trained_and_predicts(kind, model, reviews, entities, tmp_path):
    """Reference: the Trainer's predictions, which the pipeline makes again; entities that are learned in part."""
    own = settings("classification", model(kind), reviews, tmp_path / "c", epochs=1)
    finetune(own)
    rows = [json.loads(line) for line in (own.output / "predictions-test.jsonl").read_text().splitlines()]
    assert [row["label"] for row in predict(own.output, [], [reviews["test"]], 1)] == [row["predicted"] for row in rows]
    own = settings("ner", model(kind), entities, tmp_path / "n", epochs=4)
    assert finetune(own)["metrics"]["validation"]["entity_f1"] > 0.3
    (answer,) = predict(own.output, ["the film was seen by Ada in Oslo " * 12], [], 4)  # longer than the model reads
    assert all(entity["text"] == answer["text"][entity["start"] : entity["end"]] for entity in answer["entities"])


# ---------------------------------------------------------------------------------------------------------------------
# The same again


def test_the_batch_may_be_cut_into_any_parts(model, entities, tmp_path):
    """Reference: whole batches of 16. 8 parts of 2 sentences of unlike lengths give the same weights but for rounding;
    the mean of their means would not.
    """
    quiet = tmp_path / "model"
    shutil.copytree(model("bert"), quiet)
    config = json.loads((quiet / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (quiet / "config.json").write_text(json.dumps(config))
    found = []
    for micro in (16, 2):
        own = settings("ner", quiet, entities, tmp_path / f"micro-{micro}", max_steps=4, micro_batch_size=micro)
        assert finetune(own)["plan"]["gradient_accumulation_steps"] == 16 // micro
        found.append(weights(own.output))
    assert_same(*found, atol=2e-4)


@pytest.mark.parametrize("where", [17, 24])  # in the middle of the second epoch, and at its end
def test_a_stopped_fine_tuning_goes_on_to_the_same_weights(where, trained, model, reviews, tmp_path, monkeypatch):
    """Reference: the same without a stop, bit for bit, with dropout. What a kill leaves half-written is removed."""
    whole, results = trained["classification"]
    own = settings("classification", whole.model, reviews, tmp_path / "out", epochs=3)
    stop, on_step_end = StopRequest(), training._Callbacks.on_step_end

    def ask(self, args, state, control, **further):
        if state.global_step == where:
            stop.reason = "SIGTERM"
        on_step_end(self, args, state, control, **further)

    monkeypatch.setattr(training._Callbacks, "on_step_end", ask)
    with pytest.raises(StoppedError, match=f"stopped at step {where} "):
        finetune(own, stop)
    half = own.output / "checkpoints" / "checkpoint-30"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    moved = tmp_path / "moved"
    own.output.rename(moved)
    found = finetune(settings("classification", whole.model, reviews, moved, epochs=3), StopRequest())
    assert found["metrics"] == results["metrics"] and found["best_step"] == results["best_step"]
    assert_same(weights(whole.output), weights(moved))


def test_seeds_make_a_table_of_means_and_deviations(model, reviews, tmp_path):
    """Reference: the statistics of the standard library over the results of each seed; a second call trains nothing."""
    own = settings("classification", model("bert"), reviews, tmp_path / "out", max_steps=15)
    report = finetune_seeds(own, [1, 2])
    each = [json.loads((own.output / f"seed-{seed}" / "results.json").read_text())["metrics"] for seed in (1, 2)]
    for split in ("validation", "test"):
        for metric, found in report["metrics"][split].items():
            values = [metrics[split][metric] for metrics in each]
            assert found["values"] == values and found["mean"] == statistics.fmean(values)
            assert found["deviation"] == statistics.stdev(values)
    first, second = (weights(own.output / f"seed-{seed}") for seed in (1, 2))
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    assert finetune_seeds(own, [1, 2])["metrics"] == report["metrics"]


# ---------------------------------------------------------------------------------------------------------------------
# What goes wrong


def test_a_loss_that_is_not_finite_ends_it(model, reviews, tmp_path):
    broken = tmp_path / "model"
    shutil.copytree(model("bert"), broken)
    table = weights(broken)
    table["bert.embeddings.LayerNorm.weight"] += float("nan")
    save_file(table, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NonFiniteError, match="the loss is nan"):
        finetune(settings("classification", broken, reviews, tmp_path / "out", max_steps=10))


def test_impossible_settings_are_one_line(model, reviews, tmp_path):
    cases = [
        ({"global_batch_size": 10, "micro_batch_size": 4}, "--micro-batch-size 4: the 10 rows"),
        ({"precision": "fp16"}, "needs a GPU"),
        ({"deepspeed": "nowhere.json"}, "--deepspeed nowhere.json: No such file"),
    ]
    for further, said in cases:
        if further.get("precision") == "fp16" and torch.cuda.is_available():
            continue
        with pytest.raises(UserError, match=said):
            finetune(settings("classification", model("bert"), reviews, tmp_path / "out", **further))
    for further, said in (({"patienc": 1}, "did you mean patience"), ({"epochs": 0}, "must be above 0")):
        with pytest.raises(UserError, match=said):
            settings("classification", model("bert"), reviews, tmp_path / "out", **further)


# ---------------------------------------------------------------------------------------------------------------------
# What transformers opens


def test_what_is_saved_opens_in_a_python_without_this_project(trained, tmp_path):
    """Reference: `predict`. An isolated interpreter, with transformers alone, in another folder."""
    texts = ["the film was good .", "我 看 了 坏 电 影"]
    wanted = {
        "classification": list(predict(trained["classification"][0].output, texts, [], 4)),
        "ner": list(predict(trained["ner"][0].output, ["seen by Ada Li in Oslo", "我 在 北京"], [], 4)),
        "similarity": list(predict(trained["similarity"][0].output, ["the film", "a film"], [], 4)),
    }
    program = """
import json, sys
sys.modules["train"] = sys.modules["data_pipeline"] = None  # an import of either fails
from transformers import pipeline, AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoModel
folders = json.loads(sys.argv[1])
classify = pipeline("text-classification", model=folders["classification"])
find = pipeline("token-classification", model=folders["ner"], aggregation_strategy="first")
compare = pipeline("text-classification", model=folders["similarity"])
AutoModelForSequenceClassification.from_pretrained(folders["classification"])
AutoModelForTokenClassification.from_pretrained(folders["ner"])
AutoModel.from_pretrained(folders["cosine"])
texts = json.loads(sys.argv[2])
found = {"classification": classify(texts, truncation=True)}
found["ner"] = [[(e["entity_group"], e["start"], e["end"]) for e in find(t)] for t in json.loads(sys.argv[3])]
found["similarity"] = compare({"text": "the film", "text_pair": "a film"})
print(json.dumps(found))
"""
    folders = {task: str(own.output) for task, (own, _) in trained.items()}
    sentences = ["seen by Ada Li in Oslo", "我 在 北京"]
    arguments = [json.dumps(value) for value in (folders, texts, sentences)]
    words = [sys.executable, "-I", "-W", "ignore", "-c", program, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for ours, theirs in zip(wanted["classification"], found["classification"], strict=True):
        assert ours["label"] == theirs["label"] and ours["score"] == pytest.approx(theirs["score"], abs=1e-3)
    entities = [[[e["type"], e["start"], e["end"]] for e in row["entities"]] for row in wanted["ner"]]
    assert found["ner"] == entities and entities[0] == [["PER", 8, 14], ["LOC", 18, 22]]
    score = found["similarity"]["score"] if isinstance(found["similarity"], dict) else found["similarity"][0]["score"]
    assert wanted["similarity"][0]["score"] == pytest.approx(score, abs=1e-3)


def test_predict_takes_texts_and_files(trained, reviews, tmp_path):
    folder = trained["classification"][0].output
    by_file = list(predict(folder, [], [reviews["test"]], 8))
    rows = [json.loads(line) for line in (folder / "predictions-test.jsonl").read_text().splitlines()]
    assert [row["label"] for row in by_file] == [row["predicted"] for row in rows]
    (tmp_path / "texts.txt").write_text("the film was good\n\na bad film\n")
    assert [row["text"] for row in predict(folder, ["a"], [str(tmp_path / "texts.txt")], 8)] == [
        "a",
        "the film was good",
        "a bad film",
    ]
    (answer,) = predict(trained["cosine"][0].output, ["the film was", "the film was"], [], 8)
    assert answer["score"] == pytest.approx(5.0, abs=1e-3)
    for words, model, said in (
        (["a"], trained["similarity"][0].output, "1 texts: this model takes them 2 by 2: text, text_pair"),
        ([], folder, "nothing to predict"),
        (["a"], trained["classification"][0].model, "BertForMaskedLM, not fine-tuned for"),
    ):
        with pytest.raises(UserError, match=said):
            list(predict(model, words, [], 8))
