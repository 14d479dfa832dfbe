"""What becomes of an export's weights in transformers' encoder-decoder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, EncoderDecoderModel, PreTrainedTokenizerFast

from data_pipeline.tokenizer import train_wordpiece
from train.config import Model
from train.errors import UserError
from train.finetune.translation_model import build, decoder_origin
from train.model.cross_decoder import CrossDecoder
from train.model.decoder import Rotation
from train.model.documents import Documents

VOCABULARY, WIDTH, SENTINELS = 60, 24, 5
SIZES = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40}
FAMILIES = {
    "bert": {"hidden_dropout_prob": 0.0},
    "roberta": {"hidden_dropout_prob": 0.0, "type_vocab_size": 1},
    "modernbert": {"global_attn_every_n_layers": 2},
    "eurobert": {"num_key_value_heads": 3},
}
GENERATION = {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "max_length": 9, "num_beams": 3}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    folder = train_wordpiece(lambda: ["the cat 国"] * 3, 64, 1, False)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(folder.tokenizer_json), **names)


def save_encoder(folder: Path, family: str) -> Path:
    """A random model whose weights are large enough for every part to matter."""
    torch.manual_seed(1)
    ids = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    further = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "initializer_range": 0.2}
    config = AutoConfig.for_model(family, **SIZES, **further, **ids, **FAMILIES[family])
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    return folder


def save_decoder(folder: Path, objective: str, width: int = WIDTH) -> CrossDecoder:
    """The decoder of span corruption beside it, as an export writes it."""
    model = Model.model_validate(
        {
            "gradient_checkpointing": False,
            "encoder": SIZES | {"max_position_embeddings": 40, "layer_norm_eps": 1e-12},
            "decoder": SIZES | {"hidden_size": width, "num_hidden_layers": 3},
        }
    )
    decoder = CrossDecoder(model, VOCABULARY + SENTINELS)
    torch.manual_seed(2)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, mean=0.1, std=0.3)
    save_file(decoder.state_dict(), folder / "decoder.safetensors")
    layout = {"decoder": model.resolved_decoder()._asdict(), "objective": {"name": objective}}
    (folder / "decoder_config.json").write_text(json.dumps(layout))
    return decoder


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(5, VOCABULARY, (2, 7), generator=generator)
    mask = torch.ones_like(source)
    source[1, 5:], mask[1, 5:] = 0, 0
    target = torch.randint(5, VOCABULARY, (2, 6), generator=generator)
    return {"input_ids": source, "attention_mask": mask, "decoder_input_ids": target}


def survives(model: torch.nn.Module, folder: Path) -> None:
    """The same logits, and translations, once it was saved and opened by transformers alone."""
    model.eval().save_pretrained(folder)
    again, report = EncoderDecoderModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(model(**batch()).logits, again.eval()(**batch()).logits)
    inputs = {name: tensor for name, tensor in batch().items() if not name.startswith("decoder")}
    assert torch.equal(model.generate(**inputs), again.generate(**inputs))
    assert again.generation_config.num_beams == 3


def test_the_decoder_of_span_corruption_says_the_same(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Reference: our CrossDecoder on the encoder's states, its rotations those of position 0."""
    ours = save_decoder(save_encoder(tmp_path / "a", "bert"), "span-corruption")
    origin = decoder_origin(tmp_path / "a", None, "auto")
    assert origin.kind == "pretrained"
    model = build(tmp_path / "a", origin, tokenizer, GENERATION).eval()
    inputs = batch()
    with torch.no_grad():
        logits = model(**inputs).logits
        encoder = AutoModel.from_pretrained(tmp_path / "a").eval()
        states = encoder(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
        table = encoder.get_input_embeddings().weight
        for row, length in enumerate((7, 5)):
            documents = [Documents.of(np.array([size]), torch.device("cpu")) for size in (6, length)]
            hidden = ours.widen(F.embedding(inputs["decoder_input_ids"][row], table))
            rotation = Rotation(torch.zeros(6), ours.head_width)
            for layer in ours.layers:
                hidden = layer(hidden, rotation, documents[0], states[row, :length], documents[1])
            expected = ours.head(ours.norm(hidden)) @ table.T + ours.bias[:VOCABULARY]
            assert torch.allclose(logits[row], expected, atol=1e-4), (logits[row] - expected).abs().max()
    assert model.decoder.get_input_embeddings().weight.std() > 0.1
    survives(model, tmp_path / "saved")


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_decoder_from_an_encoder_has_all_its_weights(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """Rothe et al. 2020: every weight of the encoder stands in the decoder; attention to it alone is new."""
    origin = decoder_origin(save_encoder(tmp_path / "a", family), None, "auto")
    assert origin.kind == "encoder"
    model = build(tmp_path / "a", origin, tokenizer, GENERATION)
    theirs = AutoModel.from_pretrained(tmp_path / "a").state_dict()
    body = getattr(model.decoder, model.decoder.base_model_prefix).state_dict()
    assert {name for name in theirs if "pooler" not in name} <= body.keys()
    assert all(torch.equal(body[name], theirs[name]) for name in theirs if "pooler" not in name)
    assert all("crossattention" in name for name in body.keys() - theirs.keys())
    survives(model, tmp_path / "saved")


@pytest.mark.parametrize("family", ["modernbert", "eurobert"])
def test_families_that_cannot_be_a_decoder_get_a_new_one_with_their_embeddings(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """transformers has no attention to an encoder in them; the words say what is new."""
    origin = decoder_origin(save_encoder(tmp_path / "a", family), None, "auto")
    assert origin.kind == "new" and family in origin.words
    model = build(tmp_path / "a", origin, tokenizer, GENERATION)
    table = AutoModel.from_pretrained(tmp_path / "a").get_input_embeddings().weight
    assert torch.equal(model.decoder.get_input_embeddings().weight, table)
    survives(model, tmp_path / "saved")
    with pytest.raises(UserError, match=f"no decoder of a {family}"):
        decoder_origin(tmp_path / "a", None, "encoder")


def test_encoder_and_decoder_of_two_folders_and_widths_meet(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """--target-model: the decoder of another vocabulary; its own export's decoder knows another encoder."""
    save_encoder(tmp_path / "a", "modernbert")
    save_decoder(save_encoder(tmp_path / "b", "bert"), "span-corruption")
    origin = decoder_origin(tmp_path / "a", tmp_path / "b", "auto")
    assert (origin.kind, origin.folder) == ("encoder", tmp_path / "b")
    survives(build(tmp_path / "a", origin, tokenizer, GENERATION), tmp_path / "saved")


@pytest.mark.parametrize(("objective", "width", "why"), [("mae", WIDTH, "no tokens"), ("span-corruption", 12, "width")])
def test_a_decoder_that_does_not_fit_is_left_aside_and_said(
    tmp_path: Path, objective: str, width: int, why: str
) -> None:
    """A mistake only where it was asked for."""
    save_decoder(save_encoder(tmp_path / "a", "bert"), objective, width)
    origin = decoder_origin(tmp_path / "a", None, "auto")
    assert origin.kind == "encoder" and why in origin.words
    with pytest.raises(UserError, match=why):
        decoder_origin(tmp_path / "a", None, "pretrained")
