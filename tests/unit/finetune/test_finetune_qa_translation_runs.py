"""Question answering and translation from files to a folder that transformers opens without our code."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM

from data_pipeline.tokenizer import save_tokenizer, train_wordpiece
from train.errors import DataError, UserError
from train.finetune.predict import predict
from train.finetune.settings import settings_for
from train.finetune.training import finetune

ANIMALS = ["猫", "狗", "马", "cat", "dog", "horse"]
PAIRS = [("a cat", "一只猫。"), ("a dog", "一只狗。"), ("a horse", "一匹马。"), ("two cats", "两只猫。")]
FRESH = """
import json, sys
from transformers import AutoModelForQuestionAnswering, AutoTokenizer, EncoderDecoderModel
qa, translation = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(qa)
model = AutoModelForQuestionAnswering.from_pretrained(qa).eval()
question, context = "who sits?", "the cat sits on the mat"
inputs = tokenizer(question, context, return_tensors="pt")
output = model(**inputs)
first, last = output.start_logits.argmax(), output.end_logits.argmax()
source = AutoTokenizer.from_pretrained(translation)
target = AutoTokenizer.from_pretrained(translation + "/target_tokenizer")
model = EncoderDecoderModel.from_pretrained(translation)
ids = model.generate(**source(["a cat", "two cats"], return_tensors="pt", padding=True))
assert not [name for name in sys.modules if name.split(".")[0] in ("train", "data_pipeline")]
answer = tokenizer.decode(inputs["input_ids"][0][first : last + 1])
print(json.dumps([answer, *target.batch_decode(ids, skip_special_tokens=True)]))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of one layer whose vocabulary has all words of these tests."""
    folder = tmp_path_factory.mktemp("model") / "bert"
    texts = [*map(" ".join, PAIRS), "who sits on the mat? 谁坐在垫子上？", *ANIMALS] * 3
    save_tokenizer(train_wordpiece(lambda: texts, 400, 1, False), folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vocabulary = len(AutoTokenizer.from_pretrained(folder))
    config = BertConfig(**sizes, vocab_size=vocabulary, max_position_embeddings=64, hidden_dropout_prob=0.0)
    torch.manual_seed(0)  # one of 40 needs more steps in translation at a learning rate of 1e-2, none at 5e-3
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def questions(path: Path) -> str:
    """An answer in each of six contexts, the last of them long and cut by its windows."""
    paragraphs = []
    for number, animal in enumerate(ANIMALS):
        before = "the mat " * 40 if number == 5 else ""
        context = f"{before}the {animal} sits on the mat"
        answers = [{"text": animal, "answer_start": context.index(animal)}]
        paragraphs.append(
            {"context": context, "qas": [{"id": str(number), "question": "who sits?", "answers": answers}]}
        )
    path.write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}), encoding="utf-8")
    return str(path)


def sentences(folder: Path) -> str:
    for language, side in (("en", 0), ("zh", 1)):
        (folder / f"t.{language}").write_text("".join(f"{pair[side]}\n" for pair in PAIRS * 4), encoding="utf-8")
    return str(folder / "t")


@pytest.fixture(scope="module")
def trained(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both tasks, learned by heart."""
    pytest.importorskip("sacrebleu")
    folder = tmp_path_factory.mktemp("trained")
    shared = {"model": model, "global_batch_size": 8, "validate_steps": 30}
    file, prefix = questions(folder / "q.json"), sentences(folder)
    options = {"stride": 8, "max_length": 48, "language": "en", "max_steps": 60, "learning_rate": 1e-2}
    finetune(settings_for("qa", train=file, validation=file, test=file, output=folder / "qa", **options, **shared))
    options = {"source_language": "en", "target_language": "zh", "max_target_length": 12, "max_steps": 90}
    options["learning_rate"] = 5e-3
    finetune(
        settings_for("translation", train=prefix, validation=prefix, output=folder / "translation", **options, **shared)
    )
    return {"qa": folder / "qa", "translation": folder / "translation"}


def test_what_was_learned_by_heart_is_said(trained: dict[str, Path]) -> None:
    """Reference: the training data, which is also that of validation."""
    results = json.loads((trained["qa"] / "results.json").read_text())
    assert results["metrics"]["validation"] == {"exact_match": 100.0, "f1": 100.0} == results["metrics"]["test"]
    assert results["facts"]["counts"]["train"]["windows"] > 6
    results = json.loads((trained["translation"] / "results.json").read_text())
    assert results["metrics"]["validation"]["bleu"] == pytest.approx(100)
    assert "tok:zh" in results["facts"]["signatures"]["bleu"]
    assert results["data"]["train"]["sha256"].keys() == {"t.en", "t.zh"}
    lines = (trained["translation"] / "predictions-validation.jsonl").read_text().splitlines()
    assert [json.loads(line)["translation"] for line in lines] == [chinese for _, chinese in PAIRS * 4]


def test_transformers_alone_opens_what_was_saved(trained: dict[str, Path]) -> None:
    """In a fresh Python, by the lines of the documentation."""
    command = [sys.executable, "-I", "-c", FRESH, str(trained["qa"]), str(trained["translation"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == ["cat", "一只猫。", "两只猫。"]


def test_predict_says_the_same_and_where(trained: dict[str, Path]) -> None:
    """Reference: what was learned. A long context is read in windows, and places are those of its characters."""
    long = "\u0000" + "the mat " * 40 + "the 猫 sits on the mat"
    texts = ["who sits?", "the dog sits on the mat", "who sits?", long]
    short, found = predict(trained["qa"], texts, [], 2)
    assert (short["answer"], short["start"], short["end"]) == ("dog", 4, 7)
    assert found["answer"] == "猫" and long[found["start"] : found["end"]] == "猫"
    whole = list(predict(trained["qa"], [], [str(trained["qa"].parent / "q.json")], 4))
    assert {answer["id"]: answer["answer"] for answer in whole} == dict(zip("012345", ANIMALS, strict=True))
    answers = list(predict(trained["translation"], ["a dog", "a horse"], [], 1))
    assert [answer["translation"] for answer in answers] == ["一只狗。", "一匹马。"]


def test_a_vocabulary_that_cannot_write_the_target_is_refused(model: Path, tmp_path: Path) -> None:
    """Before anything is trained, with the way out."""
    for language, text in (("en", "a cat\n"), ("zh", "飞鸟与鱼\n")):
        (tmp_path / f"u.{language}").write_text(text * 3, encoding="utf-8")
    options = {"source_language": "en", "target_language": "zh", "output": tmp_path / "out"}
    prefix = str(tmp_path / "u")
    with pytest.raises(UserError, match="give --target-model"):
        finetune(settings_for("translation", model=model, train=prefix, validation=prefix, **options))
    assert not (tmp_path / "out").exists()


def test_languages_must_be_named(model: Path, tmp_path: Path) -> None:
    """They are the ends of the file names."""
    settings = settings_for("translation", model=model, train="t", validation="t", output=tmp_path / "out")
    with pytest.raises(UserError, match="--source-language is missing"):
        finetune(settings)


def test_a_question_without_answer_is_named(model: Path, tmp_path: Path) -> None:
    """SQuAD 2.0 says is_impossible; in 1.1 it is a mistake."""
    qas = [{"id": "7", "question": "who?", "answers": []}]
    file = tmp_path / "q.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [{"context": "the cat", "qas": qas}]}]}))
    settings = settings_for("qa", model=model, train=str(file), validation=str(file), output=tmp_path / "out")
    with pytest.raises(DataError, match=r"q\.json: question 7: no answer"):
        finetune(settings)
