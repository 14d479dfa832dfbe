"""What is known of GPUs by the name that torch gives them: arithmetic, memory, links, power, from vendors' data sheets.

Arithmetic is that of dense products, without the doubling for sparse weights that data sheets like to print, and of
tensor cores that add up in fp32 as training does. A device that is not here has no share of its peak (MFU).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

_GEN3, _GEN4, _GEN5 = 16.0, 32.0, 64.0  # GB/s of PCI Express with 16 lanes, one direction


@dataclass(frozen=True, slots=True)
class Device:
    """One model of a GPU. Links are between GPUs of a node, one direction; where there is no NVLink, PCI Express."""

    name: str
    pattern: str  # of torch.cuda.get_device_name, without case
    half: float  # dense TFLOP/s of bf16 and fp16
    tf32: float | None  # dense TFLOP/s of fp32 numbers in tensor cores; None: it has no such
    fp32: float  # TFLOP/s
    memory: float  # GB, of 10^9 bytes
    bandwidth: float  # GB/s of that memory
    link: float  # GB/s
    watts: float
    bf16: bool = True

    def peak(self, precision: str, *, tf32: bool = False) -> float | None:
        """TFLOP/s of matrix products in fp32, bf16 or fp16; None where the device has none of this precision."""
        if precision == "fp32":
            return self.tf32 if tf32 and self.tf32 else self.fp32
        return self.half if precision == "fp16" or self.bf16 else None


# The first pattern that matches decides: what a name says more precisely comes first. Fields as in Device.
DEVICES = [
    Device("GB200", r"GB200", 2500, 1250, 80, 186, 8000, 900, 1200),
    Device("B200", r"B200", 2250, 1125, 75, 180, 7700, 900, 1000),
    Device("GH200", r"GH200", 989, 494, 67, 96, 4000, 450, 700),
    Device("H200 NVL", r"H200 NVL", 835, 417, 60, 141, 4800, 450, 600),
    Device("H200", r"H200", 989, 494, 67, 141, 4800, 450, 700),
    Device("H100 NVL", r"H100 NVL", 835, 417, 60, 94, 3938, 300, 400),
    Device("H100 PCIe", r"H100 PCIe", 756, 378, 51, 80, 2000, _GEN5, 350),
    Device("H100", r"H100( SXM.*|.*HBM3|$)", 989, 494, 67, 80, 3350, 450, 700),
    Device("H800 PCIe", r"H800 PCIe", 756, 378, 51, 80, 2000, _GEN5, 350),
    Device("H800", r"H800", 989, 494, 67, 80, 3350, 200, 700),
    Device("H20", r"H20", 148, 74, 44, 96, 4000, 450, 400),
    Device("A100 PCIe 40 GB", r"A100[- ]PCIE[- ]40GB", 312, 156, 19.5, 40, 1555, _GEN4, 250),
    Device("A100 PCIe 80 GB", r"A100[- ](80GB )?PCIe", 312, 156, 19.5, 80, 1935, _GEN4, 300),
    Device("A100 40 GB", r"A100[- ]SXM4?[- ]40GB", 312, 156, 19.5, 40, 1555, 300, 400),
    Device("A100", r"A100([- ]SXM4?.*|$)", 312, 156, 19.5, 80, 2039, 300, 400),
    Device("A800 PCIe", r"A800[- ](80GB |40GB )?PCIe", 312, 156, 19.5, 80, 1935, _GEN4, 300),
    Device("A800", r"A800([- ]SXM4?.*|$)", 312, 156, 19.5, 80, 2039, 200, 400),
    Device("A40", r"A40", 149.7, 74.8, 37.4, 48, 696, _GEN4, 300),
    Device("A30", r"A30", 165, 82, 10.3, 24, 933, _GEN4, 165),
    Device("A10", r"A10", 125, 62.5, 31.2, 24, 600, _GEN4, 150),
    Device("L40S", r"L40S", 362, 183, 91.6, 48, 864, _GEN4, 350),
    Device("L40", r"L40", 181, 90.5, 90.5, 48, 864, _GEN4, 300),
    Device("L20", r"L20", 119.5, 59.8, 59.8, 48, 864, _GEN4, 275),
    Device("L4", r"L4", 121, 60, 30.3, 24, 300, _GEN4, 72),
    Device("RTX 6000 Ada", r"RTX 6000 Ada", 364, 182, 91.1, 48, 960, _GEN4, 300),
    Device("RTX A6000", r"RTX A6000", 154.8, 77.4, 38.7, 48, 768, _GEN4, 300),
    # GeForce cards add up in fp32 at half the rate that their sheets print for fp16.
    Device("RTX 5090", r"RTX 5090", 209.5, 104.8, 104.8, 32, 1792, _GEN5, 575),
    Device("RTX 4090 D", r"RTX 4090 D", 147, 73.5, 73.5, 24, 1008, _GEN4, 425),
    Device("RTX 4090", r"RTX 4090", 165.2, 82.6, 82.6, 24, 1008, _GEN4, 450),
    Device("RTX 4080", r"RTX 4080", 97.5, 48.7, 48.7, 16, 717, _GEN4, 320),
    Device("RTX 3090 Ti", r"RTX 3090 Ti", 80, 40, 40, 24, 1008, _GEN4, 450),
    Device("RTX 3090", r"RTX 3090", 71, 35.6, 35.6, 24, 936, _GEN4, 350),
    Device("V100 32 GB", r"V100[- ]SXM\d?[- ]32GB", 125, None, 15.7, 32, 900, 150, 300, bf16=False),
    Device("V100 PCIe 32 GB", r"V100[- ]PCIE[- ]32GB", 112, None, 14, 32, 900, _GEN3, 250, bf16=False),
    Device("V100 PCIe", r"V100[- ]PCIE", 112, None, 14, 16, 900, _GEN3, 250, bf16=False),
    Device("V100", r"V100([- ]SXM\d?.*|$)", 125, None, 15.7, 16, 900, 150, 300, bf16=False),
    Device("T4", r"T4", 65, None, 8.1, 16, 300, _GEN3, 70, bf16=False),
]
_OTHERS = re.compile(r"\bMIG\b|\bSUPER\b|Laptop", re.IGNORECASE)  # a slice, or a card that has a name in common


def find_device(name: str) -> Device | None:
    """The device of a name such as "NVIDIA A100-SXM4-80GB"; None where none is known."""
    if _OTHERS.search(name):
        return None
    patterns = ((device, rf"(?<![A-Z0-9]){device.pattern}(?![A-Z0-9])") for device in DEVICES)
    return next((device for device, pattern in patterns if re.search(pattern, name, re.IGNORECASE)), None)


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """Dense TFLOP/s of this device in a precision of the run; None for processors and for what is not known."""
    if device.type != "cuda":
        return None
    known = find_device(torch.cuda.get_device_name(device))
    return known.peak(precision, tf32=torch.get_float32_matmul_precision() != "highest") if known else None
