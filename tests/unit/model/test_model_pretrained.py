"""A run that starts from a folder of transformers: sizes, tokenizer and weights are those of the folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    EuroBertConfig,
    ModernBertConfig,
    PretrainedConfig,
    RobertaConfig,
)

from train.config import Config
from train.config_file import dump_config, load_config
from train.errors import UserError
from train.model.documents import Documents
from train.model.encoder import build_encoder, encoder_config
from train.model.pretrained import check_tokenizer, left_out, load_pretrained, tokens_by_id
from train.vocabulary import Vocabulary

SIZES: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
SIZES |= {"vocab_size": 56, "pad_token_id": 2, "initializer_range": 0.3}  # six rows more than the vocabulary has tokens
MODERN = {"local_attention": 6, "global_attn_every_n_layers": 2, "mlp_dropout": 0.1, "global_rope_theta": 1000.0}
CONFIGS = {
    "bert": lambda: BertConfig(**SIZES, max_position_embeddings=40, type_vocab_size=3, layer_norm_eps=1e-6),
    "roberta": lambda: RobertaConfig(**SIZES, max_position_embeddings=43, type_vocab_size=1, hidden_act="relu"),
    "modernbert": lambda: ModernBertConfig(**SIZES, **MODERN, cls_token_id=0, sep_token_id=3),
    "eurobert": lambda: EuroBertConfig(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
}


def tokenizer_file(folder: Path, vocabulary: object, added: list[dict[str, Any]]) -> Path:
    folder.mkdir(exist_ok=True)
    description = {"model": {"vocab": vocabulary}, "added_tokens": added}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    return folder


def saved(config: PretrainedConfig, folder: Path, auto: type = AutoModelForMaskedLM) -> Path:
    """A folder with weights and with the tokenizer of the data set."""
    torch.manual_seed(5)
    auto.from_config(config).save_pretrained(folder)
    return tokenizer_file(folder, {f"token{number}": number for number in range(50)}, [])


@pytest.fixture(params=CONFIGS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return saved(CONFIGS[request.param](), tmp_path / "model")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return saved(CONFIGS["bert"](), tmp_path / "model")


def configured(tmp_path: Path, model: dict[str, Any]) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"data": {"path": "shards", "sequence_length": 32}, "model": model}))
    return load_config(path)


def test_weights_and_logits_are_those_of_the_folder(folder: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: the model that transformers opens from the folder; all weights bit for bit, logits to 1e-5."""
    model = configured(tmp_path, {"pretrained": str(folder)}).model
    torch.manual_seed(0)
    encoder = build_encoder(model, vocabulary).eval()
    sentences = load_pretrained(encoder, model, folder)
    theirs = AutoModelForMaskedLM.from_pretrained(folder).eval()
    own = encoder.masked_lm.state_dict()
    assert own.keys() == theirs.state_dict().keys()
    assert all(torch.equal(tensor, own[name]) for name, tensor in theirs.state_dict().items())
    assert sentences == [f"The encoder starts from the weights of {folder}."]
    ids_T = torch.randint(5, 50, (20,))
    documents = Documents.of(np.array([20]), ids_T.device)
    with torch.no_grad():
        found = encoder.logits(encoder(ids_T, documents.positions_T, documents))
        expected = theirs(input_ids=ids_T[None]).logits[0, :, :50]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_configuration_of_the_folder_comes_back(folder: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: the folder's config.json as transformers reads it; attention dropout and ids of tokens apart."""
    model = configured(tmp_path, {"pretrained": str(folder)}).model
    found = encoder_config(model, vocabulary.size, vocabulary.special_ids).to_dict()
    expected = AutoModelForMaskedLM.from_pretrained(folder).config.to_dict()
    ours = {name for name in expected if name.endswith("token_id") or name in ("architectures", "dtype")}
    ours |= {"attention_probs_dropout_prob", "global_attn_every_n_layers", "transformers_version", "_name_or_path"}
    assert {name: found.get(name) for name in expected.keys() - ours} == {
        name: value for name, value in expected.items() if name not in ours
    }


def test_a_resolved_configuration_needs_no_folder(folder: Path, tmp_path: Path) -> None:
    """Reference: the configuration before it was written; a run's config.yaml must outlive the folder."""
    config = configured(tmp_path, {"pretrained": str(folder)})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    folder.rename(tmp_path / "elsewhere")
    assert load_config(tmp_path / "config.yaml") == config
    assert config.model.resolved_decoder().intermediate_size == 40


def test_sizes_are_checked_as_if_they_were_written(bert: Path, tmp_path: Path) -> None:
    """Reference: the folder's 40 positions, which rows of 64 tokens do not fit into."""
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps({"data": {"path": "x", "sequence_length": 64}, "model": {"pretrained": str(bert)}}))
    with pytest.raises(UserError, match=r"sequence_length 64 is above model.encoder.max_position_embeddings 40"):
        load_config(path)


@pytest.mark.parametrize(
    ("encoder", "line"),
    [
        ({"hidden_size": 768}, "model.encoder.hidden_size 768, but .*config.json says 24"),
        ({"model_type": "roberta"}, "model.encoder.model_type roberta, but .*config.json says bert"),
        ({"extra": {"type_vocab_size": 2}}, "model.encoder.extra.type_vocab_size 2, but .*config.json says 3"),
        ({"extra": {"tie_word_embeddings": False}}, "model.encoder.extra.tie_word_embeddings False, but .* says True"),
        ({"extra": {"vocab_size": 64}}, "model.encoder.extra.vocab_size 64, but .*config.json says 56"),
        ({"extra": {"type_vocabsize": 2}}, "unknown key model.encoder.extra.type_vocabsize"),
    ],
)
def test_a_field_that_differs_from_the_folder_is_refused(bert: Path, tmp_path: Path, encoder, line: str) -> None:
    """Reference: the line names both values."""
    with pytest.raises(UserError, match=line) as caught:
        configured(tmp_path, {"pretrained": str(bert), "encoder": encoder})
    assert "\n" not in str(caught.value)


def test_older_names_are_compared_by_what_they_mean(tmp_path: Path) -> None:
    """Reference: layers 0 and 2 of the folder are global; the bases of the rotations are free, for longer rows."""
    folder = saved(CONFIGS["modernbert"](), tmp_path / "model")

    def filled(extra: dict[str, Any]) -> dict[str, Any]:
        return configured(tmp_path, {"pretrained": str(folder), "encoder": {"extra": extra}}).model.encoder.extra

    filled({"global_attn_every_n_layers": 2})
    with pytest.raises(
        UserError, match=r"model.encoder.extra.layer_types .*'sliding_attention', 'sliding_attention'\]"
    ):
        filled({"global_attn_every_n_layers": 3})
    with pytest.raises(UserError, match=r"model.encoder.extra.local_attention 128, but .* says 6"):
        filled({"local_attention": 128})
    assert filled({})["rope_parameters"]["full_attention"]["rope_theta"] == 1000
    assert "rope_parameters" not in filled({"global_rope_theta": 5000.0})


def test_fields_that_are_the_same_or_free_are_taken(bert: Path, tmp_path: Path) -> None:
    """Reference: the written values; the weights do not depend on dropout."""
    free = {"hidden_dropout_prob": 0.0, "extra": {"classifier_dropout": 0.2}}
    encoder = configured(tmp_path, {"pretrained": str(bert), "encoder": {"hidden_size": 24} | free}).model.encoder
    assert (encoder.hidden_size, encoder.hidden_dropout_prob) == (24, 0.0)
    assert encoder.extra["classifier_dropout"] == 0.2 and encoder.extra["type_vocab_size"] == 3


def test_attention_dropout_is_said_aloud(bert: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: BERT's 0.1, which the kernel cannot give."""
    model = configured(tmp_path, {"pretrained": str(bert)}).model
    [sentence] = left_out(model)
    assert sentence.startswith(f"Attention dropout is 0 and not 0.1 as in {bert}")
    assert encoder_config(model, vocabulary.size, vocabulary.special_ids).attention_probs_dropout_prob == 0
    assert left_out(configured(tmp_path, {}).model) == []


def test_a_folder_without_a_head_gets_a_new_one(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: the weights before loading, where the folder has none; and the sentence that says so."""
    folder = saved(CONFIGS["bert"](), tmp_path / "model", AutoModel)
    model = configured(tmp_path, {"pretrained": str(folder)}).model
    encoder = build_encoder(model, vocabulary)
    before = encoder.masked_lm.cls.predictions.transform.dense.weight.clone()
    assert load_pretrained(encoder, model, folder)[1:] == [
        f"{folder} has no masked-language-model head: a new one is trained."
    ]
    assert torch.equal(encoder.masked_lm.cls.predictions.transform.dense.weight, before)
    theirs = AutoModel.from_pretrained(folder)
    assert torch.equal(encoder.embedding_VD, theirs.embeddings.word_embeddings.weight)
    assert encoder.masked_lm.get_output_embeddings().weight is encoder.embedding_VD


def test_pytorch_weights_are_read_as_weights_only(bert: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: the same weights as safetensors; and a pickle with code, which is refused and does not run."""
    model = configured(tmp_path, {"pretrained": str(bert)}).model
    state = AutoModelForMaskedLM.from_pretrained(bert).state_dict()
    (bert / "model.safetensors").unlink()
    torch.save(state, bert / "pytorch_model.bin")
    encoder = build_encoder(model, vocabulary)
    load_pretrained(encoder, model, bert)
    assert torch.equal(encoder.embedding_VD, state["bert.embeddings.word_embeddings.weight"])
    witness = tmp_path / "ran"
    torch.save({"bert.pooler": Harmful(str(witness))}, bert / "pytorch_model.bin")
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_pretrained(encoder, model, bert)
    assert not witness.exists()


class Harmful:
    """Writes a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def test_a_folder_that_is_not_whole_is_one_line(bert: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: what is missing, as the user is told."""
    model = configured(tmp_path, {"pretrained": str(bert)}).model
    encoder = build_encoder(model, vocabulary)
    from safetensors.torch import load_file, save_file

    weights = load_file(bert / "model.safetensors")
    del weights["bert.encoder.layer.1.output.dense.bias"]
    save_file(weights, bert / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights of the encoder are missing, such as bert.encoder.layer.1"):
        load_pretrained(encoder, model, bert)
    (bert / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_pretrained(encoder, model, bert)
    (bert / "model.safetensors").unlink()
    with pytest.raises(UserError, match="its weights cannot be read"):
        load_pretrained(encoder, model, bert)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "no config.json, so no folder of a transformers model"),
        ("{", "its config.json cannot be read"),
        ("[]", "its config.json cannot be read"),
        ('{"model_type": "gpt2"}', "model_type gpt2 is not one of bert, roberta"),
        ('{"model_type": "bert", "hidden_size": "wide"}', "its config.json cannot be used"),
    ],
)
def test_a_folder_of_another_kind_is_one_line(tmp_path: Path, content: str | None, line: str) -> None:
    """Reference: the folder and what is wrong with it, as the user is told."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=line) as caught:
        configured(tmp_path, {"pretrained": str(tmp_path)})
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_old_file_without_model_type_is_a_bert(bert: Path, tmp_path: Path) -> None:
    """Reference: the same file with it; Google's first releases name no architecture."""
    expected = configured(tmp_path, {"pretrained": str(bert)})
    settings = json.loads((bert / "config.json").read_text())
    del settings["model_type"]
    (bert / "config.json").write_text(json.dumps(settings))
    assert configured(tmp_path, {"pretrained": str(bert)}) == expected


def test_tokenizers_are_compared_token_by_token(tmp_path: Path) -> None:
    """Reference: the lines that name the first token that differs; every kind of file gives the same table."""
    added = [{"id": 2, "content": "[MASK]"}]
    here = tokenizer_file(tmp_path / "here", {"a": 0, "b": 1}, added)
    unigram = tokenizer_file(tmp_path / "unigram", [["a", 0.0], ["b", -1.0]], added)
    text, table = tmp_path / "text", tmp_path / "table"
    text.mkdir()
    (text / "vocab.txt").write_text("a\nb\n[MASK]\n")
    table.mkdir()
    (table / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "[MASK]": 2}))
    for same in (here, unigram, text, table):
        assert tokens_by_id(same) == {0: "a", 1: "b", 2: "[MASK]"}
        check_tokenizer(same, here)
    for other, line in (
        ({"a": 0, "c": 1}, "token 1 is 'c' there and 'b' here"),
        ({"a": 0}, "token 1 is None there and 'b' here"),
        ({"a": 0, "b": 1, "d": 3}, "token 3 is 'd' there and None here"),
    ):
        with pytest.raises(UserError, match=line):
            check_tokenizer(tokenizer_file(tmp_path / "other", other, added), here)
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match=r"neither tokenizer.json nor vocab.txt"):
        check_tokenizer(tmp_path / "none", here)


def test_another_tokenizer_is_refused_before_any_weight_is_read(bert: Path, tmp_path: Path, vocabulary) -> None:
    """Reference: the line of the comparison, and the weights before."""
    model = configured(tmp_path, {"pretrained": str(bert)}).model
    encoder = build_encoder(model, vocabulary)
    before = encoder.embedding_VD.clone()
    with pytest.raises(UserError, match="token 0 is 'token0' there and 'other' here"):
        load_pretrained(encoder, model, tokenizer_file(tmp_path / "data", {"other": 0}, []))
    assert torch.equal(encoder.embedding_VD, before)


def test_fewer_rows_than_tokens_are_refused(bert: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Reference: 56 rows of the folder for a tokenizer of 57 tokens."""
    model = configured(tmp_path, {"pretrained": str(bert)}).model
    with pytest.raises(UserError, match="vocab_size 56 is below the 57 tokens"):
        encoder_config(model, 57, vocabulary.special_ids)
