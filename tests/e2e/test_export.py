"""What comes out opens with transformers and is the model that was trained."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import xxhash
from e2e_commands import ROOT, command, environment
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, ModernBertConfig, ModernBertForMaskedLM

from data_pipeline.manifest import load_manifest
from train import checkpoint
from train.__main__ import main
from train.config_file import load_config
from train.export import encoder_form, export_step
from train.model.documents import Documents
from train.monitor.logs import log
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


def assert_export_is_the_trained_model(run: Path, exported: Path, shards: Path) -> None:
    """Logits and states of our padding-free model with the checkpoint's weights, and of transformers' own classes."""
    objective = build_objective(load_config(run / "config.yaml", []), load_vocabulary(load_manifest(shards))).eval()
    checkpoint.load_weights(objective, checkpoint.newest_whole(run / "checkpoints")[0].path)
    inputs = AutoTokenizer.from_pretrained(exported)("The [MASK] statement returns a value.", return_tensors="pt")
    ids_T = inputs["input_ids"][0]
    documents = Documents.of(torch.tensor([len(ids_T)]).numpy(), ids_T.device)
    with torch.no_grad():
        hidden = objective.encoder(ids_T, documents.positions_T, documents)
        logits = objective.encoder.logits(hidden)
        their_logits = AutoModelForMaskedLM.from_pretrained(exported)(**inputs).logits[0]
        their_hidden = AutoModel.from_pretrained(exported)(**inputs).last_hidden_state[0]
    torch.testing.assert_close(their_logits[:, : logits.shape[1]], logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(their_hidden, hidden, rtol=0, atol=1e-5)


def test_logits_of_the_export_equal_those_of_the_trained_model(run, exported, shards):
    """Reference: our padding-free model with the checkpoint's weights; the export runs transformers' own attention."""
    assert_export_is_the_trained_model(run, exported, shards)


@pytest.mark.parametrize("kind", [pytest.param("roberta", marks=pytest.mark.slow), "eurobert"])
def test_every_family_is_trained_and_exported(kind, tiny, shards, tmp_path):
    """Reference: as above."""
    words = [*tiny, f"model.encoder.model_type={kind}", "model.encoder.hidden_dropout_prob=0.0"]
    words += ["run.steps=2", "schedule.warmup_steps=1", "optimizer.learning_rate=3e-3", f"run.directory={tmp_path}/run"]
    for done in (
        command("train", "pretrain", *words),
        command("train", "export", tmp_path / "run", "--output", tmp_path / "model"),
    ):
        assert done.returncode == 0, done.stderr
    assert_export_is_the_trained_model(tmp_path / "run", tmp_path / "model", shards)


@pytest.fixture
def folder(shards, tmp_path) -> Path:
    """A random ModernBERT with the tokenizer of the data set, and eight rows more than that has tokens."""
    shutil.copytree(shards / "tokenizer", tmp_path / "folder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")
    settings = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "cls_token_id", "sep_token_id")}
    ids |= {"bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(1)
    config = ModernBertConfig(**settings, **ids, vocab_size=len(tokenizer) + 8, local_attention=8)
    ModernBertForMaskedLM(config).save_pretrained(tmp_path / "folder")
    return tmp_path / "folder"


def test_a_pretrained_folder_comes_out_as_it_went_in(folder, shards, tmp_path):
    """Reference: the folder's weights. The learning rate moves them by less than 1e-20."""
    settings = {"data": {"path": str(shards), "sequence_length": 64}, "model": {"pretrained": str(folder)}}
    settings |= {"run": {"steps": 2, "directory": str(tmp_path / "run")}, "schedule": {"warmup_steps": 1}}
    settings |= {"batch": {"global_batch_size": 4, "micro_batch_size": 2}, "engine": {"precision": "fp32"}}
    (tmp_path / "run.yaml").write_text(json.dumps(settings | {"optimizer": {"learning_rate": 1e-30}}))
    dry = command("train", "pretrain", tmp_path / "run.yaml", "--dry-run")
    assert dry.returncode == 0 and "local_attention: 8" in dry.stdout, dry.stderr
    started = command("train", "pretrain", tmp_path / "run.yaml")
    assert f"The encoder starts from the weights of {folder}." in started.stdout + started.stderr
    shutil.move(folder, tmp_path / "elsewhere")  # nothing needs it any more
    done = command("train", "export", tmp_path / "run", "--output", tmp_path / "model")
    assert done.returncode == 0, done.stderr
    before = load_file(tmp_path / "elsewhere" / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-20)
    assert_export_is_the_trained_model(tmp_path / "run", tmp_path / "model", shards)


def test_a_pretrained_folder_with_another_tokenizer_is_one_line(folder, shards, tmp_path):
    """Reference: the first token that differs, before anything is trained."""
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"[unused0]"', '"[other]"').replace('"the"', '"teh"'))
    words = ["configs/demo.yaml", f"data.path={shards}", f"model.pretrained={folder}", "--dry-run"]
    done = command("train", "pretrain", *words)
    assert done.returncode == 2 and "model.encoder.model_type bert, but" in done.stderr  # the preset's own
    settings = {"data": {"path": str(shards)}, "model": {"pretrained": str(folder)}}
    (tmp_path / "run.yaml").write_text(json.dumps(settings))
    done = command("train", "pretrain", tmp_path / "run.yaml", "--dry-run")
    assert done.returncode == 2 and "its tokenizer is not that of the data set: token" in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1


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
        (["export", run, "--output", tmp_path / "x", "--step", 7], 4, "no checkpoint of step 7; there is 0, 30"),
    ):
        done = command("train", *words)
        assert done.returncode == code and done.stderr.count("\n") == 1 and part in done.stderr, done.stderr


def test_a_dry_run_of_every_preset_says_what_would_happen(shards):
    """Reference: the words of each sentence. One process for all: starting costs more than the dry run."""
    presets = sorted(map(str, (ROOT / "configs").glob("*.yaml")))
    script = "import sys; from train.__main__ import main\n"
    script += "for preset in sys.argv[2:]: assert main(['pretrain', preset, sys.argv[1], '--dry-run']) == 0, preset"
    words = [sys.executable, "-c", script, f"data.path={shards}", *presets]
    done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = done.stdout.split("Dry run: nothing was trained.\n")
    assert len(said) == len(presets) + 1 and not said.pop()
    parts = ("Global batch", "per device", "tokens per optimizer step", "per epoch", "M parameters", "ZeRO stage")
    for preset, sentences in zip(presets, said, strict=True):
        assert all(part in sentences for part in parts), preset


# ---------------------------------------------------------------------------------------------------------------------
# Exports of a run that goes on


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def strip_provenance(path: Path) -> None:
    """Make a checkpoint like those of versions that wrote nothing of what made it, nor any other later key."""
    state = json.loads((path / "state.json").read_text())
    for name in ("config", "versions", "code", "objective", "optimizer", "randomness"):
        del state[name]
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text())
    digest = xxhash.xxh3_128_hexdigest((path / "state.json").read_bytes())
    manifest["files"]["state.json"] = {"bytes": (path / "state.json").stat().st_size, "checksum": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_exports_every_kth_step_as_the_command_does(tiny, tmp_path):
    """Reference: `python -m train export --step`, byte for byte. Between two starts the newest export is taken away, as
    by a kill after its checkpoint: the second start writes it. That checkpoint is one of an older version, so that the
    model card knows less of it."""
    run = tmp_path / "run"
    words = [*tiny, f"run.directory={run}", "schedule.name=constant", "checkpoint.export_every=4"]
    words.append("checkpoint.keep_last=10")
    done = command("train", "pretrain", *words, "run.steps=8")
    assert done.returncode == 0, done.stderr
    state = checkpoint.newest_whole(run / "checkpoints")[0].state
    assert state["config"] == load_config(run / "config.yaml").model_dump(mode="json")
    assert (state["objective"], state["optimizer"]) == ("joint", "adamw")
    strip_provenance(run / "checkpoints" / "step-00000008")
    first = files(run / "exports" / "step-00000008")
    shutil.rmtree(run / "exports" / "step-00000008")
    done = command("train", "launch", "--nproc-per-node", 2, "pretrain", *words, "run.steps=12")
    assert done.returncode == 0, done.stderr
    assert "(step 8," in done.stdout
    assert sorted(path.name for path in (run / "exports").iterdir()) == [f"step-{s:08d}" for s in (4, 8, 12)]
    second, cards = files(run / "exports" / "step-00000008"), {"README.md", "bertmae.json"}
    assert second.keys() == first.keys() and "| code | unknown |" in second["README.md"].decode()
    assert all(second[name] == first[name] for name in first.keys() - cards)
    for step in (4, 8, 12):
        assert main(["export", str(run), "--output", str(tmp_path / f"{step}"), "--step", str(step)]) == 0
        assert files(tmp_path / f"{step}") == files(run / "exports" / f"step-{step:08d}")


def test_an_export_that_the_disk_refuses_costs_a_warning(run, tmp_path, caplog, monkeypatch):
    """Reference: a file in the place of the folder; the sentence says how to come by the export later."""
    config = load_config(run / "config.yaml", [f"run.directory={tmp_path}"])
    (tmp_path / "exports").write_bytes(b"")
    monkeypatch.setattr(log, "propagate", True)
    form, weights = (
        encoder_form(config, run / "tokenizer"),
        checkpoint.read_table(run / "checkpoints" / "step-00000030", "model"),
    )
    export_step(config, form, {"step": 30, "tokens_seen": 1}, weights)
    assert "step 30: no export was written to" in caplog.text and "File exists" in caplog.text
    assert f"python -m train export {tmp_path} --step 30" in caplog.text
