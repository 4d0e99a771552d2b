"""The first layers of somebody else's network in one step."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ..layers.fusion import stem


class Stem(nn.Module):
    """A network that begins with a convolution, BN, ReLU and max pooling.

    `amp`: the dtype of an autocast region around the forward pass, whose output is in the input's
    dtype again; None (default) leaves that to the caller.
    """

    # the children that it begins with
    stem_names = ("conv1", "bn1", "relu", "maxpool")
    fused = True
    amp: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        # a graph has the precision of whoever runs it
        if self.amp is None or isinstance(x, Proxy):
            return super().forward(x)
        with torch.autocast(x.device.type, dtype=self.amp):
            return super().forward(x).to(x.dtype)

    def run_stem(self, x: Tensor) -> Tensor:
        """The first layers, in as few steps as they allow."""
        return stem(x, *(getattr(self, name) for name in self.stem_names), fused=True)
