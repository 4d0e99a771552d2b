"""The convolutions of a step and nothing else: what no fusion around them can beat.

PyTorch's own convolutions at the network's shapes, forward and both gradients, channels_last. They
compute nothing of the network, so there is no parity to check and no speed of a network to claim.
An implementation with faster convolutions of its own may come out ahead of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .workload import Step


class _Convolution(NamedTuple):
    x: Tensor
    weight: Tensor
    dy: Tensor
    geometry: tuple
    need_dx: bool


class ConvolutionsAlone(Step):
    """Calling it runs every convolution of the module once forward and once backward."""

    def __init__(self, *arguments, **options) -> None:
        super().__init__(*arguments, **options)
        self._convolutions: list[_Convolution] = []
        handles = [
            module.register_forward_hook(self._note)
            for module in self.module.modules()
            if isinstance(module, nn.Conv2d)
        ]
        with torch.no_grad():
            self.forward_pass(self.batches[0])
        for handle in handles:
            handle.remove()

    def _note(self, module: nn.Conv2d, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        def like(tensor: Tensor) -> Tensor:
            return torch.randn_like(tensor, memory_format=torch.channels_last)

        x = inputs[0].to(output.dtype)
        geometry = (module.stride, module.padding, module.dilation, False, [0, 0], module.groups)
        first = not self._convolutions and not self.workload.input_gradients
        self._convolutions.append(
            _Convolution(
                like(x), module.weight.detach().to(output.dtype), like(output), geometry, not first
            )
        )

    def __call__(self, index: int) -> None:
        for c in self._convolutions:
            torch.ops.aten.convolution(c.x, c.weight, None, *c.geometry)
        for c in reversed(self._convolutions):
            torch.ops.aten.convolution_backward(
                c.dy, c.x, c.weight, None, *c.geometry, [c.need_dx, True, False]
            )
