"""What comes out opens with transformers and is the model that was trained."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from e2e_commands import ROOT, command, environment
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from data_pipeline.manifest import load_manifest
from train import checkpoint
from train.config_file import load_config
from train.model.documents import Documents
from train.objectives import build_objective
from train.vocabulary import load_vocabulary


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("export") / "run"
    done = command("train", "pretrain", *tiny, f"run.directory={run}", "run.steps=30", "optimizer.learning_rate=3e-3")
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="module")
def exported(run) -> Path:
    done = command("train", "export", run, "--output", run.parent / "model")
    assert done.returncode == 0, done.stderr
    return run.parent / "model"


def test_logits_of_the_export_equal_those_of_the_trained_model(run, exported, shards):
    """Reference: our padding-free model with the checkpoint's weights; the export runs transformers' own attention."""
    objective = build_objective(load_config(run / "config.yaml", []), load_vocabulary(load_manifest(shards))).eval()
    checkpoint.load_weights(objective, checkpoint.newest_whole(run / "checkpoints")[0].path)
    inputs = AutoTokenizer.from_pretrained(exported)("The [MASK] statement returns a value.", return_tensors="pt")
    ids_T = inputs["input_ids"][0]
    documents = Documents.of(torch.tensor([len(ids_T)]).numpy(), ids_T.device)
    with torch.no_grad():
        ours = objective.encoder.logits(objective.encoder(ids_T, documents.positions_T, documents))
        theirs = AutoModelForMaskedLM.from_pretrained(exported)(**inputs).logits[0]
        hidden = AutoModel.from_pretrained(exported)(**inputs).last_hidden_state[0]
        expected = objective.encoder(ids_T, documents.positions_T, documents)
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden, expected, rtol=0, atol=1e-5)


def test_the_decoder_is_exported_beside_the_encoder_unchanged(run, exported):
    trained = checkpoint.read_table(checkpoint.newest_whole(run / "checkpoints")[0].path, "model")
    decoder = load_file(exported / "decoder.safetensors")
    assert decoder.keys() == {name.removeprefix("decoder.") for name in trained if name.startswith("decoder.")}
    assert all(torch.equal(tensor, trained[f"decoder.{name}"]) for name, tensor in decoder.items())
    settings = json.loads((exported / "decoder_config.json").read_text())
    assert settings["decoder"]["hidden_size"] == 32 and settings["objective"]["name"] == "joint"


def test_the_export_opens_without_our_code(exported, tmp_path):
    """In a process that cannot import this project."""
    program = (
        "import sys; from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer as T\n"
        f"t = T.from_pretrained({str(exported)!r}); m = AutoModelForMaskedLM.from_pretrained({str(exported)!r})\n"
        f"AutoModel.from_pretrained({str(exported)!r}); print(m(**t('a [MASK]', return_tensors='pt')).logits.shape)\n"
        "assert 'train' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert f"torch.Size([1, 4, {json.loads((exported / 'config.json').read_text())['vocab_size']}])" in done.stdout


def test_fill_mask_prints_the_best_five_with_probabilities(exported):
    done = command("train", "fill-mask", exported, "The [MASK] statement returns a [MASK].")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "The [MASK] statement returns a [MASK]."
    assert len(lines) == 3 and all(line.count("%") == 5 for line in lines[1:])


def test_mistakes_are_one_line(run, exported, tmp_path):
    for words, code, part in (
        (["fill-mask", exported, "no mask here"], 2, "no [MASK] in the text"),
        (["fill-mask", tmp_path, "a [MASK]"], 2, "no exported model"),
        (["export", tmp_path, "--output", tmp_path / "x"], 2, "no run folder"),
        (["export", run, "--output", exported], 2, "already there"),
    ):
        done = command("train", *words)
        assert done.returncode == code and done.stderr.count("\n") == 1 and part in done.stderr, done.stderr


@pytest.mark.parametrize("preset", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_a_dry_run_of_every_preset_says_what_would_happen(preset, shards, tmp_path):
    done = command("train", "pretrain", f"configs/{preset}", f"data.path={shards}", "--dry-run")
    assert done.returncode == 0, done.stderr
    for words in ("Global batch", "per device", "tokens per optimizer step", "per epoch", "M parameters", "ZeRO stage"):
        assert words in done.stdout
    assert "Dry run: nothing was trained." in done.stdout
