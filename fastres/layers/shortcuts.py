"""The shortcuts of the paper's section 4.1: A zero-padded, B and C projections."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from .around import obstacle_around

SHORTCUTS = ("A", "B", "C")


class PadShortcut(nn.Module):
    """Option A: the strided identity, new channels filled with zeros, no parameters.

    out[n, c, i, j] = x[n, c, stride*i, stride*j] for c < in_channels, else 0.

    Args:
        in_channels: channels of x [N, in_channels, H, W].
        out_channels: channels of the output, at least `in_channels`.
        stride: step in both directions; the output is [(H-1)//stride + 1, (W-1)//stride + 1].
        fused: run the fused operator instead of a slice and a pad.

    Raises:
        ValueError: `out_channels` is below `in_channels`.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, *, fused: bool = False
    ) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f"out_channels must be at least in_channels={in_channels}, got {out_channels}"
            )
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.stride = stride
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and obstacle_around() is None:
            return functional.pad_shortcut(x, self.out_channels, self.stride)
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, 0, self.out_channels - self.in_channels))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


def make_shortcut(
    option: str,
    in_channels: int,
    out_channels: int,
    stride: int,
    norm_layer: Callable[..., nn.Module],
    *,
    fused: bool,
) -> nn.Module | None:
    """The shortcut of one block: None where it is the identity.

    Raises:
        ValueError: `option` is not one of "A", "B", "C".
    """
    if option not in SHORTCUTS:
        raise ValueError(f"shortcut must be one of 'A', 'B', 'C', got {option!r}")
    same_shape = stride == 1 and in_channels == out_channels
    if same_shape and option != "C":
        return None
    if option == "A":
        return PadShortcut(in_channels, out_channels, stride, fused=fused)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
        norm_layer(out_channels),
    )
