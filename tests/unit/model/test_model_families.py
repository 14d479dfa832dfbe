"""Every family is transformers' own model, however the documents are packed, and is configured by the same fields."""

from collections.abc import Sequence
from typing import get_args

import numpy as np
import pytest
import torch
from transformers import AutoModelForMaskedLM, ModernBertConfig, PreTrainedModel, RobertaConfig

from train.config import Encoder as EncoderConfig
from train.config import Model
from train.errors import UserError
from train.model.documents import Documents
from train.model.encoder import Encoder, build_encoder, encoder_config
from train.model.families import FAMILIES
from train.vocabulary import Vocabulary

LENGTHS = (17, 2, 70, 3, 21)  # ModernBERT's window here is 5 tokens to each side, and a band 64 queries


def built(model: Model, vocabulary: Vocabulary) -> tuple[Encoder, PreTrainedModel]:
    """Our encoder, and transformers' own model with the same weights."""
    torch.manual_seed(0)
    encoder = build_encoder(model, vocabulary)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    config = encoder_config(model, vocabulary.size, vocabulary.special_ids)
    theirs = AutoModelForMaskedLM.from_config(config, attn_implementation="sdpa")
    theirs.load_state_dict(encoder.masked_lm.state_dict())
    return encoder, theirs


def random_ids(lengths: Sequence[int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(5, 50, (length,), generator=generator) for length in lengths]


def ours_packed(encoder: Encoder, ids: list[torch.Tensor], positions: list[torch.Tensor] | None = None) -> torch.Tensor:
    """Logits [T, V]."""
    documents = Documents.of(np.array([len(own) for own in ids]), torch.device("cpu"))
    positions_T = documents.positions_T if positions is None else torch.cat(positions)
    return encoder.logits(encoder(torch.cat(ids), positions_T, documents))


def theirs_padded(theirs: PreTrainedModel, ids: list[torch.Tensor]) -> torch.Tensor:
    """Logits [T, V] of a padded batch, whose positions transformers finds itself."""
    pad = torch.nn.utils.rnn.pad_sequence
    mask = pad([torch.ones_like(own) for own in ids], batch_first=True)
    output = theirs(input_ids=pad(ids, batch_first=True, padding_value=2), attention_mask=mask)
    return output.logits[mask.bool()]


def test_packed_documents_equal_a_padded_batch_forward_and_backward(
    family_model: Model, vocabulary: Vocabulary
) -> None:
    """Reference: transformers' model of the family under sdpa; logits at all tokens, gradients of all parameters."""
    encoder, theirs = built(family_model, vocabulary)
    ids = random_ids(LENGTHS)
    found, expected = ours_packed(encoder, ids), theirs_padded(theirs, ids)
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-5)
    direction = torch.linspace(-1, 1, found.numel()).view_as(found) / found.numel()
    for logits in (found, expected):
        (logits * direction).sum().backward()
    for (name, ours), other in zip(encoder.masked_lm.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: name + text)


def test_kept_tokens_at_their_original_positions_equal_a_shorter_document(
    family_model: Model, vocabulary: Vocabulary
) -> None:
    """Reference: transformers on every third token with position ids; its local window counts the tokens it is given.

    RoBERTa's own ids begin behind the id of padding, 2 here: callers of ours never need to know.
    """
    encoder, theirs = built(family_model, vocabulary)
    positions = [torch.arange(0, length, 3) for length in LENGTHS]
    ids = [own[kept] for own, kept in zip(random_ids(LENGTHS), positions, strict=True)]
    found = ours_packed(encoder, ids, positions).split([len(own) for own in ids])
    first = 3 if FAMILIES[family_model.encoder.model_type].counts_from_padding else 0
    for own, kept, logits in zip(ids, positions, found, strict=True):
        expected = theirs(input_ids=own[None], position_ids=kept[None] + first).logits[0]
        torch.testing.assert_close(logits, expected, atol=5e-5, rtol=1e-5)


def test_local_layers_see_their_window_only(vocabulary: Vocabulary) -> None:
    """Reference: one local layer of ModernBERT: a token reaches half of local_attention to each side, no farther."""
    encoder = {"model_type": "modernbert", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3}
    encoder |= {"extra": {"local_attention": 8, "layer_types": ["sliding_attention"]}}
    ours, _ = built(Model.model_validate({"gradient_checkpointing": False, "encoder": encoder}), vocabulary)
    [ids] = random_ids([80])
    changed = ids.clone()
    changed[40] = 5 if ids[40] != 5 else 6
    before, after = ours_packed(ours, [ids]), ours_packed(ours, [changed])
    assert (before != after).any(-1).nonzero().flatten().tolist() == list(range(36, 45))


def test_every_family_of_the_configuration_is_tested_and_known() -> None:
    """Reference: the values that the field takes; the fixture goes over all families."""
    assert get_args(EncoderConfig.model_fields["model_type"].annotation) == tuple(FAMILIES)


def test_fields_reach_transformers_under_its_own_names(vocabulary: Vocabulary) -> None:
    """Reference: the attributes of the configuration classes, by name."""
    fields = {"hidden_act": "relu", "hidden_dropout_prob": 0.3, "layer_norm_eps": 0.25, "max_position_embeddings": 64}
    expected = {
        "roberta": {
            **{"hidden_act": "relu", "hidden_dropout_prob": 0.3, "layer_norm_eps": 0.25},
            **{"max_position_embeddings": 67, "type_vocab_size": 1, "attention_probs_dropout_prob": 0.0},
            **{"pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 3, "vocab_size": 50},
        },
        "modernbert": {
            **{"hidden_activation": "relu", "classifier_activation": "relu", "norm_eps": 0.25},
            **{"embedding_dropout": 0.3, "mlp_dropout": 0.3, "attention_dropout": 0.0},
            **{"max_position_embeddings": 64, "cls_token_id": 0, "sep_token_id": 3, "pad_token_id": 2},
        },
        "eurobert": {
            **{"hidden_act": "relu", "rms_norm_eps": 0.25, "max_position_embeddings": 64, "mask_token_id": 4},
        },
    }
    for kind, attributes in expected.items():
        own = fields | ({"hidden_dropout_prob": 0.0} if kind == "eurobert" else {})
        model = Model(encoder=EncoderConfig(model_type=kind, **own))
        config = encoder_config(model, vocabulary.size, vocabulary.special_ids)
        assert {name: getattr(config, name) for name in attributes} == attributes


def test_fields_left_out_take_the_defaults_of_the_architecture() -> None:
    """Reference: the configuration classes of transformers; RoBERTa's 1e-5 is fairseq's."""
    modern, theirs = EncoderConfig(model_type="modernbert"), ModernBertConfig()
    assert (modern.num_hidden_layers, modern.intermediate_size) == (theirs.num_hidden_layers, theirs.intermediate_size)
    assert (modern.max_position_embeddings, modern.layer_norm_eps) == (8192, theirs.norm_eps)
    assert modern.hidden_dropout_prob == theirs.mlp_dropout == theirs.embedding_dropout
    assert EncoderConfig(model_type="modernbert", num_hidden_layers=3).num_hidden_layers == 3
    roberta = EncoderConfig(model_type="roberta")
    assert (roberta.num_hidden_layers, roberta.layer_norm_eps) == (RobertaConfig().num_hidden_layers, 1e-5)
    assert EncoderConfig().layer_norm_eps == 1e-12


def test_extra_settings_reach_transformers(vocabulary: Vocabulary) -> None:
    """Reference: the attributes of the configuration; a later name of a field may be set apart."""
    extra = {"local_attention": 6, "mlp_dropout": 0.2, "norm_bias": True, "vocab_size": 64}
    encoder = EncoderConfig(model_type="modernbert", hidden_dropout_prob=0.4, extra=extra)
    config = encoder_config(Model(encoder=encoder), vocabulary.size, vocabulary.special_ids)
    assert {name: getattr(config, name) for name in extra} == extra
    assert config.embedding_dropout == 0.4


@pytest.mark.parametrize(
    ("kind", "extra", "line"),
    [
        (
            "modernbert",
            {"local_atention": 4},
            "unknown key model.encoder.extra.local_atention for model_type modernbert",
        ),
        ("modernbert", {"local_atention": 4}, "did you mean local_attention?"),
        ("bert", {"norm_eps": 1.0}, "known here: .*type_vocab_size"),
        ("modernbert", {"norm_eps": 1.0}, "set it as model.encoder.layer_norm_eps"),
        ("bert", {"is_decoder": True}, "unknown key model.encoder.extra.is_decoder"),
        ("roberta", {"pad_token_id": 1}, "unknown key model.encoder.extra.pad_token_id"),
    ],
)
def test_an_impossible_name_in_extra_is_one_line(kind: str, extra: dict[str, object], line: str) -> None:
    """Reference: the name and the way out, as the user is told."""
    with pytest.raises(UserError, match=line) as caught:
        EncoderConfig(model_type=kind, extra=extra)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("extra", "line"),
    [({"vocab_size": 49}, "extra.vocab_size 49 is below the 50 tokens"), ({"norm_bias": "x"}, "transformers refuses")],
)
def test_an_impossible_value_in_extra_is_one_line(vocabulary: Vocabulary, extra, line: str) -> None:
    """Reference: the value and the reason, as the user is told."""
    model = Model(encoder=EncoderConfig(model_type="modernbert", extra=extra))
    with pytest.raises(UserError, match=line) as caught:
        encoder_config(model, vocabulary.size, vocabulary.special_ids)
    assert "\n" not in str(caught.value)


def test_dropout_that_an_architecture_has_not_is_refused() -> None:
    """Reference: EuroBERT, whose blocks have none."""
    with pytest.raises(ValueError, match="eurobert has no dropout, set 0"):
        EncoderConfig(model_type="eurobert", hidden_dropout_prob=0.1)


def test_spare_rows_are_kept_and_never_predicted(vocabulary: Vocabulary) -> None:
    """Reference: the same weights without the spare rows."""
    encoder = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 3, "intermediate_size": 40}
    padded = Model.model_validate({"encoder": encoder | {"extra": {"vocab_size": 64}}})
    ours, _ = built(padded, vocabulary)
    plain, _ = built(Model.model_validate({"encoder": encoder}), vocabulary)
    cut = {name: tensor[:50] if len(tensor) == 64 else tensor for name, tensor in ours.state_dict().items()}
    plain.load_state_dict(cut)
    ids = random_ids([9])
    assert ours.embedding_VD.shape == (64, 24)
    assert (ours.output_VD.shape, ours.output_bias_V.shape) == ((50, 24), (50,))
    torch.testing.assert_close(ours_packed(ours.eval(), ids), ours_packed(plain.eval(), ids))
