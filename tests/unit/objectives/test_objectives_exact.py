"""Every objective equals its definition: losses, hits and the gradient of every parameter."""

import pytest
import torch
from objective_reference import Reference, slow_sums
from objective_toys import LENGTHS, OBJECTIVES, as_batch, make_documents, run, tiny_config, tiny_objective

HEAD_WEIGHTS = torch.tensor([1.0, 0.6])
EPOCH = 3


def assert_close_to_the_largest(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, name: str) -> None:
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(actual, expected, atol=tolerance * scale, rtol=0, msg=lambda text: f"{name}: {text}")


VARIANTS = [
    *((name, {}) for name in OBJECTIVES),
    *((name, {"mask_unit": unit, "drop_unit": unit}) for name in OBJECTIVES for unit in ("word", "span")),
    ("joint", {"mask_unit": "span", "drop_unit": "token"}),
    ("joint", {"mask_unit": "word", "drop_unit": "span"}),
    ("mlm", {"boundary_weight": 1.0}),
    ("mlm", {"boundary_weight": 0.5, "mask_unit": "span", "span_probability": 0.1}),
    ("latent-mae", {"reconstruct": "all"}),
]


@pytest.mark.parametrize(("attention", "pad_to"), [("sdpa", None), ("eager", 40)], ids=["sdpa alone", "eager padded"])
@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: str(value).replace("'", ""))
def test_an_objective_equals_its_definition(name: str, variant: dict, attention: str, pad_to: int | None) -> None:
    """Reference: one document at a time through transformers' BertForMaskedLM and a decoder of loops."""
    ratios = {"mask_ratio": 0.3, "mask_token_share": 0.5, "random_token_share": 0.3, "drop_ratio": 0.4}
    config = tiny_config(name, **(ratios | variant))
    objective = tiny_objective(config)
    documents = make_documents(LENGTHS)
    reference = Reference(objective, config, attention, pad_to)
    totals = slow_sums(reference, documents, EPOCH)

    losses_H, hits_H2 = run(objective, as_batch(documents, EPOCH))
    assert hits_H2.tolist() == [[total.hits, total.frequent] for total in totals]
    assert sum(total.frequent for total in totals) > 0
    torch.testing.assert_close(losses_H, torch.stack([total.loss for total in totals]), atol=1e-5, rtol=1e-5)

    weights_H = HEAD_WEIGHTS[: len(totals)]
    (losses_H * weights_H).sum().backward()
    (torch.stack([total.loss for total in totals]) * weights_H).sum().backward()
    expected = reference.gradients()
    assert expected.keys() == dict(objective.named_parameters()).keys()
    for parameter_name, parameter in objective.named_parameters():
        if expected[parameter_name] is None:  # masked autoencoding has no use for the head of the encoder
            assert name.endswith("mae") and parameter_name.startswith("encoder.masked_lm.cls.")
            assert parameter.grad is None
        else:
            assert_close_to_the_largest(parameter.grad, expected[parameter_name], 1e-5, parameter_name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_hits_count_what_the_head_guesses_right(name: str) -> None:
    """Reference: the same definition, for a model that has learnt its documents until it guesses some right."""
    config = tiny_config(name, mask_ratio=0.3, mask_token_share=0.5, random_token_share=0.1, drop_ratio=0.4)
    objective, documents = tiny_objective(config), make_documents(LENGTHS)
    optimizer = torch.optim.Adam(objective.parameters(), lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        run(objective, as_batch(documents, EPOCH))[0].sum().backward()
        optimizer.step()
    hits_H2 = run(objective, as_batch(documents, EPOCH))[1]
    totals = slow_sums(Reference(objective, config, "sdpa", None), documents, EPOCH)
    assert hits_H2.tolist() == [[total.hits, total.frequent] for total in totals]
    assert all(total.hits > 3 for total in totals)


def test_the_joint_loss_weighs_its_heads_as_configured() -> None:
    """Reference: the fields of the configuration, in the order of the heads."""
    joint = tiny_objective(tiny_config("joint", mlm_weight=0.25, reconstruction_weight=2.0))
    assert dict(zip(joint.heads, joint.weights(), strict=True)) == {"mlm": 0.25, "reconstruction": 2.0}
    for name, head in (("mlm", "mlm"), ("mae", "reconstruction")):
        single = tiny_objective(tiny_config(name, mlm_weight=0.25, reconstruction_weight=2.0))
        assert (single.heads, single.weights()) == ((head,), (1.0,))
