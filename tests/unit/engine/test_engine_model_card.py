"""The model card and bertmae.json of an export, against what the run's files say."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from small_runs import make_run, small_config
from transformers import AutoModelForMaskedLM, AutoTokenizer

from train.export import export
from train.monitor.metrics import newest_first, read_metrics


@pytest.fixture
def make(tmp_path):
    """`make(objective)`: a run, its export, the card and the facts."""

    def call(objective="mlm", steps=(250,)):
        run = make_run(tmp_path / "run", small_config(objective), steps)
        records = read_metrics(run / "metrics.jsonl")
        records[199] |= {"validation_loss": 2.5, "validation_mlm_loss": 2.5, "validation_mlm_accuracy": 0.25}
        records[149] |= {"validation_loss": 9.0}
        records[239] |= {"validation_seconds_total": 3.0, "probe_reviews_cls_accuracy": 0.75, "probe_seconds": 2.0}
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        sentences = list(export(run, tmp_path / "model"))
        card, facts = ((tmp_path / "model" / name).read_text() for name in ("README.md", "bertmae.json"))
        return sentences, card, json.loads(facts)

    return call


def test_the_card_says_what_the_run_says(make, tmp_path):
    """Reference: the checkpoint's state, the configuration, and the records of metrics.jsonl up to the step: the mean
    of the last hundred losses is that of 151 to 250."""
    _, card, facts = make()
    assert facts["step"] == 250 and facts["tokens_seen"] == 250_000 and facts["data"]["sets"][0]["identity"] == "0123"
    assert facts["training"] == {"steps": 100, "loss": 200.5, "mlm_loss": 200.5}
    assert facts["validation"] == {"step": 200, "loss": 2.5, "mlm_loss": 2.5, "mlm_accuracy": 0.25}
    assert facts["probe"] == {"step": 240, "reviews_cls_accuracy": 0.75}
    for part in (
        "| mlm loss | 200.5000 | 2.5000 |",
        "| mlm accuracy |  | 25.0% |",
        "step 250, 250,000 tokens",
        "commit abc",
        "identity `0123`",
        "mask ratio 0.15",
        "| reviews cls accuracy | 0.7500 |",
        facts["weights"],
    ):
        assert part in card, card


def test_the_front_matter_is_what_the_hub_reads_and_names_no_licence(make):
    """Reference: huggingface_hub's own reader, and a YAML parser. Nothing is known of the language here."""
    _, card, _ = make()
    data = ModelCard(card).data
    assert (data.library_name, data.pipeline_tag, data.license, data.language) == (
        "transformers",
        "fill-mask",
        None,
        None,
    )
    assert {"bertmae", "mlm", "bert"} <= set(data.tags)
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"


def test_a_head_that_was_not_trained_is_a_warning_and_no_fill_mask(make):
    """Reference: mae trains no masked-language-model head."""
    sentences, card, _ = make("mae")
    assert "> **Warning.** The objective mae does not train" in card and "AutoModelForMaskedLM" not in card
    assert ModelCard(card).data.pipeline_tag == "feature-extraction"
    assert any("fill-mask on this model means nothing" in sentence for sentence in sentences)


def test_the_three_lines_open_the_model(make, tmp_path, monkeypatch):
    """Reference: they run, with the folder's name put in."""
    _, card, _ = make()
    program = card.split("```python\n")[1].split("```")[0].replace("this/folder", str(tmp_path / "model"))
    names = {}
    exec(program, names)  # noqa: S102 - our own lines
    assert isinstance(names["model"], type(AutoModelForMaskedLM.from_pretrained(tmp_path / "model")))
    assert len(names["tokenizer"]) == len(AutoTokenizer.from_pretrained(tmp_path / "model"))


def test_languages_are_those_of_the_report_of_the_same_shards(tmp_path):
    """Reference: a data folder whose manifest has the checkpoint's identity; one language is below a tenth."""
    import hashlib

    shards = tmp_path / "shards"
    shards.mkdir()
    (shards / "manifest.json").write_text("{}")
    (shards / "report.json").write_text(json.dumps({"languages_of_sample": {"zh": 60, "en": 30, "und": 9, "de": 1}}))
    identity = hashlib.sha256(b"{}").hexdigest()
    from train.export_facts import _languages

    assert _languages(shards, identity) == ["zh", "en"]
    assert _languages(shards, identity[:8]) == ["zh", "en"]
    assert _languages(shards, "0123") == [] and _languages(tmp_path, identity) == []


def test_newest_first_is_the_file_backwards(tmp_path):
    """Reference: the file read from its beginning; lines lie across the bounds of what is read at once, the last one is
    torn."""
    records = [{"step": step, "text": "x" * (step % 700)} for step in range(1, 1000)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records) + '{"step": 1000, "te')
    assert list(newest_first(tmp_path / "m.jsonl")) == records[::-1]
    assert list(newest_first(tmp_path / "none.jsonl")) == []
