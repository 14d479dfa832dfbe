"""`compare`: what it calls the same and what not, against differences made here on purpose."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_runs import make_run, small_config
from transformers import AutoModel, AutoModelForMaskedLM

from train.__main__ import main
from train.export import export


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run and its export."""
    folder = tmp_path_factory.mktemp("compare")
    run = make_run(folder / "run", small_config("joint"), (5, 10))
    list(export(run, folder / "model"))
    return run, folder / "model"


@pytest.fixture
def compare(capsys):
    """`compare(a, b, ...)`: the exit code and the lines of stdout."""

    def call(*words):
        code = main(["compare", *map(str, words)])
        captured = capsys.readouterr()
        return code, captured.out.splitlines(), captured.err

    return call


def copy(model, tmp_path, change=lambda weights: None):
    """The model in another folder, its weights changed."""
    shutil.copytree(model, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "other"


def test_a_run_its_checkpoint_its_export_and_a_pickle_of_it_are_the_same(made, compare, tmp_path):
    """Reference: they are. The pickle is a state_dict, in which tied tensors stand under both names."""
    run, model = made
    shutil.copytree(model, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    weights = AutoModelForMaskedLM.from_pretrained(model).state_dict()
    torch.save(weights, tmp_path / "pickle" / "pytorch_model.bin")
    assert "cls.predictions.decoder.weight" in weights
    for other in (run, run / "checkpoints" / "step-00000010", model, tmp_path / "pickle"):
        code, lines, _ = compare(model, other, "--text", "word1 word2 word3")
        assert code == 0 and lines[-1] == "The models are the same.", lines
        assert any("differ by at most 0" in line for line in lines)
    assert any(line.startswith("tied: cls.predictions.decoder.weight is bert.embeddings") for line in lines)
    assert compare(model, run / "checkpoints" / "step-00000005")[0] == 1


def test_the_table_has_every_changed_tensor_the_most_different_first(made, compare, tmp_path):
    """Reference: three tensors changed by 0.5, 0.125 and 0.25 in one value; all others are equal."""
    changed = {
        "bert.embeddings.LayerNorm.weight": 0.5,
        "cls.predictions.bias": 0.125,
        "bert.embeddings.LayerNorm.bias": 0.25,
    }

    def change(weights):
        for name, by in changed.items():
            weights[name].view(-1)[3] += by

    other = copy(made[1], tmp_path, change)
    code, lines, _ = compare(made[1], other)
    rows = [line.split() for line in lines[3:6]]
    assert code == 1 and lines[-1] == "The models differ."
    assert [row[0] for row in rows] == sorted(changed, key=lambda name: -changed[name])
    assert [float(row[1]) for row in rows] == [0.5, 0.25, 0.125]
    assert [float(row[2]) for row in rows] == [0.333, 1.0, 1.0]  # of 1.5, 0.25 and 0.125
    assert all(row[3:][:1] == ["1"] for row in rows)
    assert lines[-2].endswith("equal, 3 different.")
    assert compare(made[1], other, "--tolerance", 0.5)[0] == 0
    assert compare(made[1], other, "--tolerance", 0.4)[0] == 1
    code, lines, _ = compare(made[1], other, "--text", "word1", "--rows", 1)
    assert code == 1 and any("and 2 with smaller differences" in line for line in lines)
    [output] = [line for line in lines if line.startswith("output on 'word1'")]
    assert float(output.split()[-1]) > 0.01


def test_names_shapes_formats_configuration_and_tokens_are_compared(made, compare, tmp_path):
    """Reference: one difference of each kind, made here."""

    def change(weights):
        weights["extra"] = weights.pop("cls.predictions.bias")
        weights["bert.embeddings.LayerNorm.bias"] = weights["bert.embeddings.LayerNorm.bias"][:4].clone()
        weights["bert.embeddings.LayerNorm.weight"] = weights["bert.embeddings.LayerNorm.weight"].bfloat16()

    other = copy(made[1], tmp_path, change)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_act": "relu", "transformers_version": "0"}))
    tokens = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(tokens.replace('"word7"', '"word77"'))
    code, lines, _ = compare(made[1], other)
    text = "\n".join(lines)
    assert code == 1
    for part in (
        "config hidden_act: gelu in A, relu in B",
        "tokenizer: 1 ids have different tokens in A and B: 12 ('word7', 'word77')",
        "only in A: cls.predictions.bias [25] float32",
        "only in B: extra [25] float32",
        "inf  shapes [8] and [4]",
        "float32 and bfloat16",
    ):
        assert part in text, text
    assert "transformers_version" not in text and lines[-2].endswith("2 different.")


def test_models_with_and_without_a_head_are_compared_under_the_same_names(made, compare, tmp_path):
    """Reference: AutoModel's own weights; what it lacks is the head, and what it has more is its pooler."""
    AutoModel.from_pretrained(made[1]).save_pretrained(tmp_path / "base")
    code, lines, _ = compare(made[1], tmp_path / "base")
    only = [line.split()[3].partition(".")[0] for line in lines if line.startswith("only in")]
    assert code == 1 and set(only) == {"cls", "decoder", "pooler"}
    assert lines[-2].endswith(" 0 different.")


def test_folders_without_a_readable_model_are_one_line(made, compare, tmp_path):
    empty, cut = tmp_path / "empty", tmp_path / "cut"
    empty.mkdir()
    shutil.copytree(made[1], cut)
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:500])
    for folder, part in ((empty, "so no model, no run and no checkpoint"), (cut, "model.safetensors: cannot be read")):
        code, lines, errors = compare(made[1], folder)
        assert code == 2 and not lines and errors.count("\n") == 1 and part in errors
