"""Which residual blocks may run as a whole, and their description for `functional`."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from ..functional import BatchNormState, ConvBN, ResidualBlock
from .fusion import NORMS, convolution_obstacle, module_obstacle
from .shortcuts import PadShortcut


def block_obstacle(block: nn.Module, pairs: int) -> str | None:
    """Why a block of `pairs` convolutions conv1, bn1, ... cannot run as a whole; None if it can."""
    if _has_any_global_hook():
        return "a global module hook is registered"
    for index in range(1, pairs + 1):
        found = _pair_obstacle(
            f"conv{index}",
            getattr(block, f"conv{index}"),
            f"bn{index}",
            getattr(block, f"bn{index}"),
        )
        if found is not None:
            return found
    return module_obstacle("relu", block.relu, nn.ReLU) or _shortcut_obstacle(block.downsample)


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


def describe(block: nn.Module, pairs: int, *, plain: bool = False) -> ResidualBlock:
    """The tensors and constants of a block without obstacles; `plain`: it has no shortcut."""
    layers = tuple(
        conv_bn(getattr(block, f"conv{index}"), getattr(block, f"bn{index}"))
        for index in range(1, pairs + 1)
    )
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
