"""What each task makes of its files: labels, tokens, scores. Nothing is trained here."""

import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from seqeval.metrics import f1_score
from seqeval.scheme import IOB2
from transformers import AutoTokenizer

from train.errors import DataError, UserError
from train.finetune import classification, metrics, ner, similarity
from train.finetune.settings import settings_for


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def settings(task, model, data, tmp_path, **further):
    return settings_for(task, model=model, output=tmp_path / "out", **data, **further)


# ---------------------------------------------------------------------------------------------------------------------
# Classification


def test_labels_are_ordered_by_size_or_by_letters(model, tmp_path):
    """Reference: sorted() of numbers and of words. 2, 2.0 and "2" are one label."""
    for given, wanted in (([10, "9", 2.0, "2"], ["2", "9", "10"]), (["b", "10", "a"], ["10", "a", "b"])):
        data = write(tmp_path / "rows.jsonl", [{"text": "the film", "label": label} for label in given])
        task = classification.prepare(settings("classification", model("bert"), splits(data), tmp_path))
        assert task.facts["labels"] == wanted
        ids = [wanted.index(str(label).removesuffix(".0")) for label in given]
        assert [feature["labels"] for feature in task.train] == ids


def lines_of(path):
    return Path(path).read_text().splitlines()


def splits(path):
    return {"train": path, "validation": path}


def test_texts_that_are_cut_are_counted(model, tmp_path):
    """Reference: each text tokenized by itself."""
    texts = ["the film", "the film " * 40, "a " * 62, "a " * 63]
    data = write(tmp_path / "rows.jsonl", [{"text": text, "label": n % 2} for n, text in enumerate(texts)])
    task = classification.prepare(settings("classification", model("bert"), splits(data), tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(model("bert"))
    whole = [tokenizer(text)["input_ids"] for text in texts]
    assert task.facts["cut"]["train"] == sum(len(ids) > 64 for ids in whole) == 2
    assert "Cut at 64 tokens: 2 of 4 in train" in task.found[1]
    for feature, ids in zip(task.train, whole, strict=True):
        assert feature["input_ids"] == (ids if len(ids) <= 64 else [*ids[:63], tokenizer.sep_token_id])


@pytest.mark.parametrize(
    ("columns", "kind"),
    [(("sentence1", "sentence2"), "bert"), (("premise", "hypothesis"), "bert"), (("a", "b"), "roberta")],
)
def test_pairs_are_found_by_the_usual_names(columns, kind, model, tmp_path):
    """Reference: the tokenizer called on the two texts; a family without token types gets none."""
    rows = [{columns[0]: "the film", columns[1]: "a film", "label": n} for n in (0, 1)]
    data = write(tmp_path / "rows.jsonl", rows)
    task = classification.prepare(settings("classification", model(kind), splits(data), tmp_path))
    wanted = AutoTokenizer.from_pretrained(model(kind))("the film", "a film")
    assert task.train[0]["input_ids"] == wanted["input_ids"] and task.saved["pair"]
    assert ("token_type_ids" in task.train[0]) == (kind == "bert")


MISTAKES = [
    ([{"text": "a", "label": "x"}, {"text": None, "label": "y"}], "train.jsonl:2: 'text' is missing"),
    ([{"text": "a", "label": "x"}, {"text": 3, "label": "y"}], "train.jsonl:2: 'text' is 3, not a text"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": None}], "train.jsonl:2: 'label' is missing"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": 0.5}], "train.jsonl:2: 'label' is 0.5"),
    ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], "all rows have the label 'x'"),
]


@pytest.mark.parametrize(("rows", "said"), MISTAKES)
def test_a_wrong_row_is_named(rows, said, model, reviews, tmp_path):
    data = reviews | {"train": write(tmp_path / "train.jsonl", rows)}
    with pytest.raises(DataError, match=said):
        classification.prepare(settings("classification", model("bert"), data, tmp_path))


def test_a_label_that_training_has_not_is_named_or_left_out(model, reviews, tmp_path):
    rows = [{"text": "a", "label": "good"}, {"text": "b", "label": "odd"}, {"text": 1, "label": "bad"}]
    data = reviews | {"test": write(tmp_path / "test.jsonl", rows[:2])}
    with pytest.raises(DataError, match=r"test\.jsonl:2: the label 'odd' does not occur"):
        classification.prepare(settings("classification", model("bert"), data, tmp_path))
    data = reviews | {"test": write(tmp_path / "test.jsonl", rows)}
    task = classification.prepare(settings("classification", model("bert"), data, tmp_path, repair=True))
    assert len(task.test) == 1 and task.facts["left_out"]["test"] == 2
    assert any("Left out by --repair: 2 of test" in line for line in task.found)


def test_columns_that_are_not_there_are_named(model, reviews, tmp_path):
    for option in ("text", "text_pair", "label"):
        with pytest.raises(UserError, match=f"no column 'none'.*--{option.replace('_', '-')}.*there are text, label"):
            classification.prepare(settings("classification", model("bert"), reviews, tmp_path, **{option: "none"}))


def test_the_loss_is_a_mean_over_the_whole_batch_however_it_is_cut():
    """Reference: torch's mean over all labelled tokens at once; parts have unlike numbers of them."""
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 5, 4), torch.randint(0, 4, (6, 5))
    labels[0] = labels[1, 1:] = labels[5, 2:] = -100
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    count = labels.ne(-100).sum()
    parts = [
        classification.cross_entropy({"logits": logits[rows]}, labels[rows], count) for rows in ([0, 1], [2, 3, 4], [5])
    ]
    torch.testing.assert_close(sum(parts), wanted)
    torch.testing.assert_close(classification.cross_entropy({"logits": logits}, labels), wanted)


# ---------------------------------------------------------------------------------------------------------------------
# Similarity


def test_scores_are_judged_by_their_ranks(model, pairs, tmp_path):
    """Reference: Pearson's correlation of the ranks, by the standard library."""
    task = similarity.prepare(settings("similarity", model("bert"), pairs, tmp_path))
    true = [json.loads(line)["score"] for line in lines_of(pairs["validation"])]
    predicted = np.random.default_rng(0).normal(size=(len(true), 1)) + np.array(true)[:, None]
    found, rows = task.score("validation", predicted)

    def ranks(values):
        return [(sum(o < v for o in values) + sum(o <= v for o in values) + 1) / 2 for v in values]

    assert found["spearman"] == pytest.approx(statistics.correlation(ranks(true), ranks(predicted[:, 0].tolist())))
    assert found["pearson"] == pytest.approx(statistics.correlation(true, predicted[:, 0].tolist()))
    assert len(rows) == len(true) and task.score("validation", np.zeros_like(predicted))[0]["spearman"] == 0.0


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_cosine_is_that_of_texts_encoded_alone(pooling, model, pairs, tmp_path):
    """Reference: each text by itself, without padding, through the encoder."""
    further = {"method": "cosine", "pooling": pooling}
    task = similarity.prepare(settings("similarity", model("bert"), pairs, tmp_path, **further))
    judge = task.build_model().eval()
    batch = dict(task.collator([dict(feature) for feature in task.train[:7]]))
    labels = batch.pop("labels")
    with torch.no_grad():
        found = judge(**batch)["logits"]
        tokenizer = AutoTokenizer.from_pretrained(model("bert"))
        for number, line in enumerate(lines_of(pairs["train"])[:7]):
            row = json.loads(line)
            hidden = [judge.encoder(**tokenizer(row[s], return_tensors="pt")).last_hidden_state[0] for s in "ab"]
            first, second = (h[0] if pooling == "cls" else h.mean(0) for h in hidden)
            torch.testing.assert_close(found[number], torch.cosine_similarity(first, second, dim=0), rtol=0, atol=1e-5)
            assert labels[number] == row["score"]


def test_wrong_scores_are_named(model, pairs, tmp_path):
    for value, said in (
        ("high", "'high', not a number"),
        (None, "missing"),
        (True, "True, not"),
        ("nan", "'nan', not a number"),
    ):
        rows = [{"a": "x", "b": "y", "score": 1}, {"a": "x", "b": "y", "score": value}]
        with pytest.raises(DataError, match=rf"rows\.jsonl:2: 'score' is {said}"):
            data = pairs | {"train": write(tmp_path / "rows.jsonl", rows)}
            similarity.prepare(settings("similarity", model("bert"), data, tmp_path))
    with pytest.raises(UserError, match="two texts a row are needed"):
        data = splits(write(tmp_path / "rows.jsonl", [{"text": "a", "score": 1}]))
        similarity.prepare(settings("similarity", model("bert"), data, tmp_path))


# ---------------------------------------------------------------------------------------------------------------------
# Named entities


def conll(path, sentences):
    path.write_text("\n".join("".join(f"{w}\t{t}\n" for w, t in sentence) for sentence in sentences))
    return str(path)


@pytest.fixture
def hard(tmp_path):
    """Words of many pieces, words that tokenizers make nothing of, and sentences longer than the model reads."""
    odd = [("Ada", "B-PER"), ("\x01", "I-PER"), ("\u200b", "O"), ("北京", "B-LOC"), ("GraceOslo" * 3, "B-PER")]
    long = [(word, "B-LOC" if word == "Oslo" else "O") for word in ["film", "Oslo", "Grace", "李明"] * 30]
    endless = [("a" * 500, "B-PER"), ("film", "O")]
    return conll(tmp_path / "hard.conll", [odd, long, endless, [("\x02", "O")]])


@pytest.mark.parametrize("kind", ["bert", "roberta", "modernbert", "eurobert"])
def test_every_word_is_labelled_once_at_its_first_piece(kind, model, hard, tmp_path):
    """Reference: every word tokenized alone; the pieces behind the first are ignored."""
    task = ner.prepare(settings("ner", model(kind), splits(hard), tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(model(kind), add_prefix_space=True)
    tags = task.facts["tags"]
    words, given = read(hard)
    labelled = []
    for feature in task.train:
        assert len(feature["input_ids"]) == len(feature["labels"]) <= 64
        for piece, label in zip(feature["input_ids"], feature["labels"], strict=True):
            if label != -100:
                labelled.append((piece, tags[label]))
    flat = [(w, t) for s, ts in zip(words, given, strict=True) for w, t in zip(s, ts, strict=True)]
    assert len(labelled) == len(flat)
    for (piece, tag), (word, wanted) in zip(labelled, flat, strict=True):
        alone = tokenizer([word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        assert piece == (alone[0] if alone else tokenizer.unk_token_id) and tag == wanted
    assert task.facts["train"]["split_sentences"] >= 1 and task.facts["train"]["words"] == len(flat)
    if kind in ("bert", "eurobert"):
        assert task.facts["train"]["vanished_words"] == 2 + 1


def read(path):
    sentences = [block.split("\n") for block in Path(path).read_bytes().decode().split("\n\n")]
    rows = [[line.split("\t") for line in block if line] for block in sentences]
    return [[row[0] for row in s] for s in rows], [[row[1] for row in s] for s in rows]


def test_the_score_is_over_every_word_of_the_file(model, hard, tmp_path):
    """Reference: seqeval on the tags of whole sentences, predicted at random. Windows and lost words change nothing."""
    task = ner.prepare(settings("ner", model("bert"), splits(hard), tmp_path))
    tags = task.facts["tags"]
    words, given = read(hard)
    draw = np.random.default_rng(1)
    choice = [[int(draw.integers(len(tags))) if draw.random() < 0.3 else tags.index(t) for t in s] for s in given]
    flat = iter([number for sentence in choice for number in sentence])
    logits = np.full((len(task.validation), 64, len(tags)), -100.0)
    for row, feature in enumerate(task.validation):
        for position, label in enumerate(feature["labels"]):
            logits[row, position] = 0.0 if label == -100 else np.eye(len(tags))[next(flat)]
    found, rows = task.score("validation", logits)
    predicted = [[tags[number] for number in sentence] for sentence in choice]
    assert [row["predicted"] for row in rows] == predicted and [row["words"] for row in rows] == words
    assert 0 < found["entity_f1"] < 1
    assert found["entity_f1"] == pytest.approx(f1_score(given, predicted, mode="strict", scheme=IOB2))


def test_a_type_that_training_has_not_is_named_or_counts_as_missed(model, entities, tmp_path):
    data = entities | {"test": conll(tmp_path / "test.conll", [[("a", "O"), ("b", "B-SHIP"), ("c", "I-SHIP")]])}
    with pytest.raises(DataError, match=r"test\.conll:2: B-SHIP: .*no entity of this type \(LOC, PER\)"):
        ner.prepare(settings("ner", model("bert"), data, tmp_path))
    task = ner.prepare(settings("ner", model("bert"), data, tmp_path, repair=True))
    assert task.facts["tags"] == ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
    assert task.facts["test"]["unknown_types"] == {"SHIP": 1}
    found, _ = task.score("test", np.eye(5)[[[4] * 5]])
    assert found["entity_recall"] == 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Folders of models


def change_config(path, **values):
    file = path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_folder_that_is_no_model_is_one_line(model, reviews, tmp_path):
    def folder(change):
        path = tmp_path / "model"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(model("bert"), path)
        change(path)
        return path

    def prepare(path, **further):
        task = classification.prepare(settings("classification", path, reviews, tmp_path, **further))
        task.build_model()

    cases = [
        (lambda p: shutil.rmtree(p), "no such folder"),
        (lambda p: (p / "config.json").unlink(), "no config.json"),
        (lambda p: (p / "config.json").write_text("{"), "its config.json cannot be read"),
        (lambda p: (p / "tokenizer.json").unlink(), "no tokenizer"),
        (lambda p: (p / "tokenizer.json").write_text("{}"), "its tokenizer cannot be read"),
        (lambda p: (p / "model.safetensors").unlink(), "no weights"),
        (lambda p: (p / "model.safetensors").write_bytes(b"x" * 99), "its weights cannot be read"),
        (lambda p: change_config(p, vocab_size=2000), "its weights cannot be read"),
        (lambda p: change_config(p, vocab_size=20), "tokens, the model 20"),
        (lambda p: change_config(p, model_type="t5"), "no AutoModelForSequenceClassification|its .* cannot be read"),
    ]
    for change, said in cases:
        with pytest.raises(UserError, match=said) as error:
            prepare(folder(change))
        assert "\n" not in str(error.value) and "--model" in str(error.value)
    with pytest.raises(UserError, match=r"--max-length 65: .* has positions for 64 tokens"):
        prepare(model("bert"), max_length=65)


def test_matthews_correlation_is_that_of_the_table_of_four_counts():
    """Reference: (TP TN - FP FN) / sqrt((TP + FP)(TP + FN)(TN + FP)(TN + FN)) with 3, 2, 1 and 2 of them."""
    pairs = [("1", "1")] * 3 + [("0", "0")] * 2 + [("0", "1")] + [("1", "0")] * 2
    true, predicted = zip(*pairs, strict=True)
    found = metrics.classification(true, predicted)
    assert found["matthews"] == pytest.approx((3 * 2 - 1 * 2) / (4 * 5 * 3 * 4) ** 0.5)
    assert found["accuracy"] == 5 / 8
    assert metrics.classification(true, ["1"] * 8)["matthews"] == 0
