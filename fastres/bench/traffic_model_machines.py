"""GPUs whose time floor is known from their data sheets, and the floor of the device at hand."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .traffic import copy_bandwidth, product_rate
from .traffic_model import Machine

TERA = 1e12


class _Sheet(NamedTuple):
    """TB/s, dense TFLOP/s with fp16/bf16 and with TF32 operands; the name that CUDA gives it."""

    bandwidth: float
    half: float
    tf32: float
    gpu: str
    family: str
    source: str


# the data sheets of Hopper print rates with sparsity: these are half of that
_SHEETS = {
    "H200": _Sheet(4.8, 989, 494, "NVIDIA H200", "sm_90", "NVIDIA H200 data sheet, SXM"),
    "H100": _Sheet(3.35, 989, 494, "NVIDIA H100 80GB HBM3", "sm_90", "NVIDIA H100 data sheet, SXM"),
    "A100": _Sheet(
        2.039, 312, 156, "NVIDIA A100-SXM4-80GB", "sm_80", "NVIDIA A100 data sheet, SXM, 80 GB"
    ),
    "B200": _Sheet(
        8.0, 2250, 1100, "NVIDIA B200", "sm_100", "NVIDIA Blackwell technical brief, HGX B200"
    ),
}
NAMES = tuple(_SHEETS)


def known(name: str, dtype: str) -> Machine:
    """The floor of a GPU, for products of "bf16", "fp16" or (in TF32) "fp32" activations."""
    sheet = _SHEETS[name]
    rate = sheet.tf32 if dtype == "fp32" else sheet.half
    return Machine(name, sheet.bandwidth * TERA, rate * TERA, sheet.source, sheet.gpu, sheet.family)


def given(bandwidth: float, matrix_rate: float) -> Machine:
    """A device of which bandwidth (TB/s) and matrix rate (TFLOP/s) are told."""
    return Machine("the given device", bandwidth * TERA, matrix_rate * TERA, "given")


def measured(device: torch.device, dtype: torch.dtype) -> Machine:
    """What a large copy moves and a large product multiplies on the device at hand."""
    # imported on first use: `import fastres.bench` must not import Triton
    from ..kernels import tuned

    cuda = device.type == "cuda"
    gpu, family = tuned.chip(device)
    return Machine(
        gpu or "this CPU",
        copy_bandwidth(device, (2**31 if cuda else 2**28)),
        product_rate(device, dtype, 8192 if cuda else 1024),
        "measured: a copy and a square matrix product, the best of ten",
        gpu,
        family,
    )
