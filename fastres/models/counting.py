"""Parameters and multiply-adds of a network."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Counts(NamedTuple):
    """parameters: all of them. multiply_adds: of one image, in convolutions and linear layers."""

    parameters: int
    multiply_adds: int


def count(model: nn.Module, image_size: int | tuple[int, int]) -> Counts:
    """Count parameters, and multiply-adds for one image of `image_size` (pixels, or rows, columns).

    The multiply-adds are the paper's FLOPs (table 1): convolutions and fully connected layers only,
    a convolution at its padded borders counted in full. Nothing is computed: a copy of the model
    without data runs on the meta device.

    Raises:
        ValueError: the model has no convolution to tell how many channels its images have.
    """
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None:
        raise ValueError(f"model must contain a convolution, got {type(model).__name__}")
    rows, columns = (image_size, image_size) if isinstance(image_size, int) else image_size

    multiply_adds = 0

    def add(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # a row of the weight is everything one output value is made of
        nonlocal multiply_adds
        multiply_adds += output.numel() * module.weight[0].numel()

    meta = _without_data(model).eval()
    for module in meta.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(add)
    images = torch.empty(
        1, first.in_channels, rows, columns, dtype=first.weight.dtype, device="meta"
    )
    with torch.no_grad():
        meta(images)
    return Counts(sum(p.numel() for p in model.parameters()), multiply_adds)


def _without_data(model: nn.Module) -> nn.Module:
    """A copy on the meta device that never allocates what the model holds."""
    memo: dict[int, Tensor] = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty
    return deepcopy(model, memo)
