"""The table of known GPUs."""

import pytest
import torch

from train.devices import DEVICES, find_device, peak_tflops


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H100 NVL", "H100 NVL"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 NVL", "H200 NVL"),
        ("NVIDIA H800", "H800"),
        ("NVIDIA H20", "H20"),
        ("NVIDIA B200", "B200"),
        ("NVIDIA GB200", "GB200"),
        ("NVIDIA GH200 480GB", "GH200"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 PCIe 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80 GB"),
        ("NVIDIA A800-SXM4-80GB", "A800"),
        ("NVIDIA A800 80GB PCIe", "A800 PCIe"),
        ("NVIDIA A40", "A40"),
        ("NVIDIA A30", "A30"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40", "L40"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L20", "L20"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", "RTX A6000"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX 3090 Ti"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 D", "RTX 4090 D"),
        ("NVIDIA GeForce RTX 4080", "RTX 4080"),
        ("NVIDIA GeForce RTX 5090", "RTX 5090"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("Tesla V100-SXM2-32GB", "V100 32 GB"),
        ("Tesla V100-PCIE-16GB", "V100 PCIe"),
        ("Tesla V100-PCIE-32GB", "V100 PCIe 32 GB"),
        ("Tesla T4", "T4"),
        # What shares a part of its name with a known one is not that one.
        ("NVIDIA A10G", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("Quadro T400", None),
        ("NVIDIA H100 96GB HBM2e", None),
        ("AMD Instinct MI300X", None),
    ],
)
def test_devices_are_found_by_the_names_that_drivers_give_them(name: str, expected: str | None) -> None:
    """Reference: names as drivers report them."""
    found = find_device(name)
    assert (found.name if found else None) == expected


def test_every_device_is_found_by_its_own_name() -> None:
    """`estimate --gpu NAME` takes the names of the table."""
    short = {"A100 40 GB": "A100-SXM4-40GB", "V100 32 GB": "V100-SXM2-32GB"}
    short |= {"A100 PCIe 40 GB": "A100-PCIE-40GB", "A100 PCIe 80 GB": "A100 80GB PCIe"}
    short |= {"V100 PCIe 32 GB": "V100-PCIE-32GB"}
    assert [find_device(short.get(device.name, device.name)) for device in DEVICES] == DEVICES


def test_peaks_are_dense_and_of_the_precision() -> None:
    """Reference: the data sheets' numbers, without sparsity: bf16 of an A100 is 312, of an H100 989."""
    a100, v100, h100 = (find_device(name) for name in ("A100", "V100", "H100"))
    assert a100 and v100 and h100
    assert (a100.peak("bf16"), a100.peak("fp16"), a100.peak("fp32"), a100.peak("fp32", tf32=True)) == (
        312,
        312,
        19.5,
        156,
    )
    assert (v100.peak("fp16"), v100.peak("bf16"), v100.peak("fp32", tf32=True)) == (125, None, 15.7)
    assert h100.peak("bf16") == 989


def test_processors_have_no_peak() -> None:
    assert peak_tflops(torch.device("cpu"), "fp32") is None
