"""Matrix products in bf16 on a CPU: fp32 products rounded once, and nothing else changes.

Replacing a kernel holds for the whole process, so what it does is found out in processes of their own.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from train.model.cpu_bf16 import _addmm, _mm

REPOSITORY = Path(__file__).resolve().parents[3]
SHAPES = ((1, 1, 1), (3, 5, 7), (64, 96, 32), (0, 4, 3), (4, 0, 3), (17, 768, 33))

PROGRAM = """
import json, sys, torch, torch.nn.functional as F
from train.model.cpu_bf16 import speed_up_bf16_products

torch.set_num_threads(1)
torch.manual_seed(0)

def operands(m, k, n, dtype):
    if not dtype.is_floating_point:
        return torch.randint(-9, 9, (n,)), torch.randint(-9, 9, (m, k)), torch.randint(-9, 9, (n, k)).t()
    return [torch.randn(shape).to(dtype) for shape in ((n,), (m, k))] + [torch.randn(n, k).to(dtype).t()]

def products(bias, a, b):
    results = [a @ b, torch.mm(a, b), torch.addmm(bias, a, b), torch.addmm(bias, a, b, beta=2, alpha=3)]
    results += [F.linear(a, b.t()), F.linear(a, b.t(), bias), F.linear(a[None], b.t(), bias), F.linear(a[None], b.t())]
    if a.is_floating_point():
        leaves = [tensor.clone().requires_grad_() for tensor in (a, b.t().contiguous(), bias)]
        output = F.linear(*leaves)
        output.backward(torch.ones_like(output))
        results += [leaf.grad for leaf in leaves]
    return results

def rounded(bias, a, b):
    return [result.bfloat16() for result in products(bias.float(), a.float(), b.float())]

def same(left, right):
    return all(x.dtype == y.dtype and x.shape == y.shape and torch.equal(x, y) for x, y in zip(left, right))

def mixed_is_refused():
    refused = 0
    for left, right in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        a, b, bias = torch.ones(2, 3, dtype=left), torch.ones(3, 4, dtype=right), torch.ones(4, dtype=left)
        for product in (lambda: torch.mm(a, b), lambda: torch.addmm(bias, a, b)):
            try:
                product()
            except RuntimeError:
                refused += 1
    return refused == 4

shapes = json.loads(sys.argv[1])
wide = [operands(*shape, dtype) for shape in shapes for dtype in (torch.float32, torch.float64, torch.int64)]
narrow = [operands(*shape, torch.bfloat16) for shape in shapes]
before = [products(*case) for case in wide]
expected = [rounded(*case) for case in narrow]
installed = speed_up_bf16_products()
print(json.dumps({
    "installed": installed is not None,
    "once": speed_up_bf16_products() is installed,
    "others unchanged": all(same(products(*case), result) for case, result in zip(wide, before)),
    "rounded": all(same(products(*case), result) for case, result in zip(narrow, expected)),
    "mixed refused": mixed_is_refused(),
}))
"""


@pytest.fixture(scope="module")
def report() -> dict[str, bool]:
    """What a process saw before and after the kernels were replaced."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, json.dumps(SHAPES)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_slow_bf16 = pytest.mark.skipif(
    torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor multiplies bf16 itself: nothing is replaced"
)


@needs_slow_bf16
def test_linear_layers_in_bf16_give_fp32_products_rounded_once(report: dict[str, bool]) -> None:
    """Reference: mm, addmm, linear and its gradients in fp32, before the kernels were replaced; then rounded."""
    assert report["installed"]
    assert report["rounded"]


def test_other_types_are_multiplied_as_before_bit_for_bit(report: dict[str, bool]) -> None:
    """Reference: fp32, fp64 and int64 products of the same process before."""
    assert report["others unchanged"]


def test_types_that_do_not_match_are_refused_as_before(report: dict[str, bool]) -> None:
    """Reference: torch, which raises RuntimeError for fp32 times bf16: a GPU would."""
    assert report["mixed refused"]


def test_kernels_are_replaced_once_and_only_where_the_processor_needs_it(report: dict[str, bool]) -> None:
    """Reference: what oneDNN says of the processor."""
    assert report["once"]
    assert report["installed"] != torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_replacements_are_within_half_a_step_of_the_exact_product(shape: tuple[int, int, int]) -> None:
    """Reference: fp64 on the same inputs; bf16 has 8 significant bits, fp32 sums add their own small error."""
    m, k, n = shape
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(size, generator=generator).bfloat16() for size in ((m, k), (k, n), (n,)))
    exact = a.double() @ b.double()
    for result, truth in [(_mm(a, b), exact), (_addmm(bias, a, b), exact + bias.double())]:
        assert result.dtype == torch.bfloat16
        error = (result.double() - truth).abs()
        assert (error <= truth.abs() * 2**-8 + 1e-5 * k).all()
