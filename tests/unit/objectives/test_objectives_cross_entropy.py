"""The chunked cross-entropy equals torch's in value and gradients, and never holds all logits."""

import pytest
import torch
import torch.nn.functional as F

from train.objectives import cross_entropy as module
from train.objectives.cross_entropy import cross_entropy

WIDTH, SIZE = 12, 31


def inputs(targets: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(targets)
    shapes = ((targets, WIDTH), (SIZE, WIDTH), (SIZE,))
    leaves = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    return leaves, torch.randint(0, SIZE, (targets,), generator=generator)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", [0, 1, 127, 128, 129, 700])
def test_value_hits_and_gradients_equal_those_of_all_logits_at_once(
    monkeypatch: pytest.MonkeyPatch, targets: int, bias: bool
) -> None:
    """Reference: linear, argmax and cross_entropy of torch, in chunks of 128 targets and a rest."""
    monkeypatch.setattr(module, "_LOGITS", {"cpu": 1})
    (hidden, weight, offset), truth = inputs(targets)
    loss, hits = cross_entropy(hidden, weight, offset if bias else None, truth)
    (0.7 * loss).backward()
    ours = [leaf.grad for leaf in (hidden, weight, offset)]
    (hidden, weight, offset), truth = inputs(targets)
    logits = F.linear(hidden, weight, offset if bias else None)
    expected = F.cross_entropy(logits, truth, reduction="sum")
    (0.7 * expected).backward()
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-6)
    assert int(hits) == int((logits.argmax(-1) == truth).sum())
    for own, leaf in zip(ours, (hidden, weight, offset), strict=True):
        if leaf.grad is None:
            assert own is None and not bias
        else:
            torch.testing.assert_close(own, leaf.grad, atol=1e-5, rtol=1e-5)


def test_bf16_is_summed_in_fp32() -> None:
    """Reference: torch in fp32 on the same bf16 numbers; a sum of 700 losses in bf16 would be off by a percent."""
    (hidden, weight, bias), truth = inputs(700, torch.bfloat16)
    loss, _ = cross_entropy(hidden, weight, bias, truth)
    loss.backward()
    wide = [leaf.detach().float().requires_grad_() for leaf in (hidden, weight, bias)]
    expected = F.cross_entropy(F.linear(*wide), truth, reduction="sum")
    expected.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    for leaf, reference in zip((hidden, weight, bias), wide, strict=True):
        error = (leaf.grad.float() - reference.grad).norm() / reference.grad.norm()
        assert leaf.grad.dtype == torch.bfloat16 and float(error) < 1e-2


def test_without_gradients_none_are_made() -> None:
    """Reference: the value with gradients; the result then needs none."""
    (hidden, weight, bias), truth = inputs(40)
    with torch.no_grad():
        loss, _ = cross_entropy(hidden, weight, bias, truth)
    assert not loss.requires_grad
    assert torch.equal(loss, cross_entropy(hidden, weight, bias, truth)[0].detach())


def test_the_logits_of_all_targets_are_never_in_memory_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reference: the largest product that is formed, against targets times vocabulary."""
    monkeypatch.setattr(module, "_LOGITS", {"cpu": 1})
    sizes: list[int] = []
    scored = module._scored

    def watched(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sizes.append(logits_CV.numel())
        return scored(logits_CV, targets_C)

    monkeypatch.setattr(module, "_scored", watched)
    (hidden, weight, bias), truth = inputs(1000)
    cross_entropy(hidden, weight, bias, truth)[0].backward()
    assert max(sizes) == 128 * SIZE and sum(sizes) == 1000 * SIZE
