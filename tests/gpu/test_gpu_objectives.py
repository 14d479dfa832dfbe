"""Every objective on a GPU: masks bit for bit as on the CPU, losses as there, no wait in a step, compiled as eager."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from gpu_toys import make_batch, make_config, make_objective, mean_loss, tensors

from train.objectives import REGISTRY

pytestmark = pytest.mark.gpu
EVERY_OBJECTIVE = pytest.mark.parametrize("name", REGISTRY)
CPU = torch.device("cpu")


@pytest.mark.parametrize("unit", ["token", "word", "span"])
@EVERY_OBJECTIVE
def test_masks_are_bit_equal_on_cpu_and_gpu(name: str, unit: str, device: torch.device) -> None:
    """Reference: the CPU. All that `select` draws: flags, ids seen, orders, counts; for two batches and two steps."""
    config = make_config(name, mask_unit=unit, drop_unit=unit, mask_ratio=0.3)
    here, there = (make_objective(config, place) for place in (CPU, device))
    for number in (0, 1):
        batch = make_batch(number)
        expected = dict(tensors(here.select(batch.to(CPU), number)))
        found = dict(tensors(there.select(batch.to(device), number)))
        assert expected.keys() == found.keys()
        assert any(tensor.dtype == torch.bool and tensor.any() for tensor in expected.values())
        for field, tensor in expected.items():
            assert torch.equal(found[field], tensor), field


@EVERY_OBJECTIVE
def test_losses_in_fp32_equal_those_of_the_cpu(name: str, device: torch.device) -> None:
    """Reference: the CPU in fp32. Losses of all heads, hits, and the norm of every gradient."""
    sums, norms = [], []
    for place in (CPU, device):
        objective, batch = make_objective(make_config(name), place), make_batch().to(place)
        losses_H, hits_H2 = objective(batch, objective.select(batch))
        losses_H.sum().backward()
        sums.append((losses_H.detach().cpu(), hits_H2.cpu()))
        norms.append({n: float(p.grad.norm()) for n, p in objective.named_parameters() if p.grad is not None})
    torch.testing.assert_close(sums[1][0], sums[0][0], rtol=1e-4, atol=1e-4)
    assert (sums[1][1] - sums[0][1]).abs().max() <= 2  # of thousands: two logits may be equal but for rounding
    assert norms[1] == pytest.approx(norms[0], rel=1e-3, abs=1e-4)


@EVERY_OBJECTIVE
def test_losses_in_bf16_are_near_those_of_fp32(name: str, device: torch.device) -> None:
    """Reference: fp32 on the same device. Rounding to 8 bits moves single logits, hardly their mean."""
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        objective, batch = make_objective(make_config(name), device, dtype), make_batch().to(device)
        losses.append(mean_loss(objective, batch, objective.select(batch)).item())
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)


@EVERY_OBJECTIVE
def test_a_step_never_waits_for_the_gpu(name: str, device: torch.device) -> None:
    """Reference: CUDA's own watch over waits, which raises at the first one; the counts came to the host before."""
    objective = make_objective(make_config(name), device, torch.bfloat16)
    optimizer = torch.optim.AdamW(objective.parameters(), lr=1e-4, fused=True)
    batches = [make_batch(number).to(device) for number in range(3)]
    selections = [objective.select(batch) for batch in batches]
    for selection in selections:
        objective.target_counts(selection)
    for number, (batch, selection) in enumerate(zip(batches, selections, strict=True)):
        with no_waits() if number else nullcontext():  # the first step makes states and loads kernels
            mean_loss(objective, batch, selection).backward()
            torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()


@EVERY_OBJECTIVE
def test_drawing_masks_never_waits_for_the_gpu(name: str, device: torch.device) -> None:
    """Reference: the same watch. Copies to the device and the draws; only asking for the counts may wait."""
    objective = make_objective(make_config(name, mask_unit="span", drop_unit="word"), device)
    objective.select(make_batch().to(device))
    batch = make_batch(1)
    with no_waits():
        selection = objective.select(batch.to(device))
    assert objective.target_counts(selection).min() > 0


def test_the_watch_over_waits_sees_one(device: torch.device) -> None:
    """Reference: a wait made on purpose."""
    flag = torch.ones((), device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), no_waits():
        flag.item()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(("name", "dtype"), [("mlm", torch.float32), ("mae", torch.bfloat16)], ids=["fp32", "bf16"])
def test_compiled_equals_eager(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Reference: the same weights not compiled; losses of batches of different shapes, and gradients.

    Fused kernels round fewer times, so bf16 has a band: the gradients point the same way.
    """
    tolerance, cosine = (1e-4, 0.9999) if dtype == torch.float32 else (2e-2, 0.99)
    eager, compiled = (make_objective(make_config(name, compiled), device, dtype) for compiled in (False, True))
    for number in (0, 1, 2):
        batch = make_batch(number, documents=20 + 20 * number).to(device)
        losses = [mean_loss(objective, batch, objective.select(batch)) for objective in (eager, compiled)]
        assert losses[1].item() == pytest.approx(losses[0].item(), rel=tolerance)
        sum(losses).backward()
    left, right = (flat_gradient(objective) for objective in (eager, compiled))
    assert float(torch.nn.functional.cosine_similarity(left, right, dim=0)) > cosine
    assert float(right.norm()) == pytest.approx(float(left.norm()), rel=10 * tolerance)


def flat_gradient(objective: torch.nn.Module) -> torch.Tensor:
    """All gradients in one vector of fp32."""
    return torch.cat([p.grad.flatten().float() for p in objective.parameters() if p.grad is not None])


@contextmanager
def no_waits() -> Iterator[None]:
    """Raise where the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
