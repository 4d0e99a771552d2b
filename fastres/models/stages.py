"""What the ImageNet and the CIFAR networks share: stages of blocks, initialisation, checks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.fx import Proxy

from ..layers import BasicBlock, Block, Bottleneck, PlainBlock, Stage, make_shortcut


def make_stage(
    block: type[Block],
    inplanes: int,
    planes: int,
    blocks: int,
    *,
    stride: int,
    shortcut: str | None,
    norm_layer: Callable[..., nn.Module],
    fused: bool,
    first_dilation: int = 1,
    dilation: int = 1,
    **options: Any,
) -> Stage:
    """`blocks` blocks of `planes * block.expansion` output channels, the first with `stride`.

    `shortcut` is "A", "B" or "C" (see `fastres.layers.make_shortcut`), None for `PlainBlock`;
    `options` go to every block. Random numbers are drawn in torchvision's order: a block's shortcut
    before the block.
    """
    stage = []
    for index in range(blocks):
        downsample = None
        if shortcut is not None:
            downsample = make_shortcut(
                shortcut, inplanes, planes * block.expansion, stride, norm_layer, fused=fused
            )
        stage.append(
            block(
                inplanes,
                planes,
                stride,
                downsample,
                dilation=first_dilation if index == 0 else dilation,
                norm_layer=norm_layer,
                fused=fused,
                **options,
            )
        )
        inplanes = planes * block.expansion
        stride = 1
    return Stage(*stage)


def initialise(model: nn.Module, *, zero_init_residual: bool) -> None:
    """He initialisation of the convolutions (fan out), normalisation layers to the identity.

    With `zero_init_residual` every residual branch starts as zero (arXiv 1706.02677): the weight of
    its last normalisation is zero.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)) and module.weight is not None:
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    if zero_init_residual:
        for module in model.modules():
            if isinstance(module, (BasicBlock, Bottleneck)):
                last = module.bn3 if isinstance(module, Bottleneck) else module.bn2
                if getattr(last, "weight", None) is not None:
                    nn.init.zeros_(last.weight)


def check_options(
    block: type[Block], shortcut: str | None, num_classes: int, zero_init_residual: bool
) -> None:
    """Raise ValueError for options that no network, or not this one, can have."""
    check_positive("num_classes", num_classes)
    if not issubclass(block, PlainBlock):
        if shortcut not in ("A", "B", "C"):
            raise ValueError(f"shortcut must be one of 'A', 'B', 'C', got {shortcut!r}")
        return
    if shortcut is not None:
        raise ValueError(f"shortcut must be None for a plain network, got {shortcut!r}")
    if zero_init_residual:
        # without a shortcut a zero branch is a zero network
        raise ValueError("zero_init_residual must be False for a plain network, got True")


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless `value` is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a positive integer, got {value!r}")


def check_images(x: Tensor, channels: int) -> None:
    """Raise unless x is a floating-point tensor [N, channels, H, W].

    Raises:
        TypeError: x is a tensor of another dtype.
        ValueError: x has another number of dimensions or of channels.
    """
    if isinstance(x, Proxy):  # symbolic tracing: there is nothing to look at yet
        return
    if not x.is_floating_point():
        raise TypeError(f"images must be a floating-point tensor, got {x.dtype}")
    if x.dim() != 4 or x.shape[1] != channels:
        raise ValueError(f"images must be [N, {channels}, H, W], got {list(x.shape)}")
