"""Any row of convolution, BN and ReLU."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.fx import Proxy

from .. import functional
from ..functional import BatchNormState
from .fusion import NORMS, can_fuse, can_normalise, geometry


class FusedSequential(nn.Sequential):
    """An `nn.Sequential` that runs a convolution, its BN and the ReLU after it as one operator.

    Everything else in it, and whatever is hooked or replaced, is called as it stands.
    """

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):  # a tracer wants to see every module by its name
            return super().forward(x)
        modules = list(self)
        while modules:
            # the first module may take something else than images, an unbatched one too
            taken = fused_layers(modules) if isinstance(x, Tensor) and x.dim() == 4 else 0
            if taken:
                conv, norm = modules[:2]
                x = functional.conv_bn_act(
                    x, conv.weight, BatchNormState.of(norm), **geometry(conv), relu=taken == 3
                )
            else:
                x, taken = modules[0](x), 1
            del modules[:taken]
        return x


def fused_layers(modules: list[nn.Module]) -> int:
    """How many of the first modules run as one operator: 3 with a ReLU, 2 without, or 0."""
    if len(modules) > 2 and can_fuse(*modules[:3]):
        return 3
    return 2 if len(modules) > 1 and can_normalise(*modules[:2]) else 0


def has_fused_layers(modules: list[nn.Module]) -> bool:
    """Whether there is anything in a row of modules that runs as one operator."""
    return any(fused_layers(modules[i:]) for i in range(len(modules)))


def may_fuse(modules: list[nn.Module]) -> bool:
    """Whether a row of modules has anything to fuse by its kinds: hooks come and go."""
    return any(
        isinstance(conv, nn.Conv2d) and conv.bias is None and isinstance(norm, tuple(NORMS))
        for conv, norm in pairwise(modules)
    )
