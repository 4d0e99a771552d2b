"""Which residual blocks may run as a whole, and their description for `functional`."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..functional import BatchNormState, ConvBN, ResidualBlock
from .around import obstacle_around
from .fusion import NORMS, convolution_obstacle, module_obstacle
from .shortcuts import PadShortcut


def block_obstacle(block: nn.Module, layers: Sequence[tuple[str, str, str]]) -> str | None:
    """Why a block cannot run as a whole; None if it can.

    `layers` are the names of each convolution, its BN and the ReLU after them.
    """
    found = obstacle_around()
    if found is not None:
        return found
    for conv, norm, act in layers:
        found = _pair_obstacle(conv, getattr(block, conv), norm, getattr(block, norm))
        found = found or module_obstacle(act, getattr(block, act), nn.ReLU)
        if found is not None:
            return found
    return _shortcut_obstacle(block.downsample)


def kind_obstacle(block: nn.Module, layers: Sequence[tuple[str, str, str]]) -> str | None:
    """Which layer of a block is of another kind than what is fused; hooks do not matter."""
    for names in layers:
        for name, kinds in zip(names, ((nn.Conv2d,), tuple(NORMS), (nn.ReLU,)), strict=True):
            piece = getattr(block, name)
            if not isinstance(piece, kinds):
                return f"{name} is a {type(piece).__name__}"
    return None


def _pair_obstacle(conv_name: str, conv: nn.Module, norm_name: str, norm: nn.Module) -> str | None:
    return convolution_obstacle(conv_name, conv) or module_obstacle(norm_name, norm, *NORMS)


def _shortcut_obstacle(shortcut: nn.Module | None) -> str | None:
    if shortcut is None or module_obstacle("", shortcut, PadShortcut) is None:
        return None
    found = module_obstacle("downsample", shortcut, nn.Sequential)
    if found is not None:
        return found
    if len(shortcut) != 2:
        return f"downsample has {len(shortcut)} modules, not a convolution and a BN"
    return _pair_obstacle("downsample.0", shortcut[0], "downsample.1", shortcut[1])


def describe(
    block: nn.Module, names: Sequence[tuple[str, str, str]], *, plain: bool = False
) -> ResidualBlock:
    """The tensors and constants of a block without obstacles; `plain`: it has no shortcut."""
    layers = tuple(conv_bn(getattr(block, conv), getattr(block, norm)) for conv, norm, _ in names)
    shortcut = block.downsample
    if plain:
        return ResidualBlock(layers, "none")
    if shortcut is None:
        return ResidualBlock(layers)
    if isinstance(shortcut, PadShortcut):
        return ResidualBlock(layers, shortcut.stride)
    return ResidualBlock(layers, conv_bn(*shortcut))


def conv_bn(conv: nn.Module, norm: nn.Module) -> ConvBN:
    """An untouched convolution and its BN in its present mode."""
    return ConvBN(
        conv.weight,
        BatchNormState.of(norm),
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
    )
