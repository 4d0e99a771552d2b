"""The 6n+2-layer networks for CIFAR-10 of the paper's section 4.2, residual and plain."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import BasicBlock, PlainBlock, check_memory, conv3x3, conv_norm_act, make_relu
from .stages import check_images, check_options, check_positive, initialise, make_stage
from .weights import load, resolve


class CifarResNet(nn.Module):
    """3x3 convolution to 16 channels, three stages of 16, 32 and 64, global average pool, fc.

    Images [N, in_channels, H, W] (32x32 in the paper; any size works) to scores [N, num_classes].

    Args:
        depth: 6n+2: the number of layers, shortcuts not counted.
        num_classes: outputs of the fully connected layer.
        in_channels: channels of the images.
        zero_init_residual: start every residual branch at zero.
        norm_layer: makes a normalisation from a number of channels; `nn.BatchNorm2d` by default.
        fused: run convolution + BN + ReLU (+ shortcut) as fused operators.
        memory: "fast", or "low" to keep less for the backward pass even where that is slower.
        shortcut: "A" (the paper's, no parameters), "B" or "C"; None for a plain network.

    Raises:
        ValueError: an argument is outside what is listed here.
    """

    def __init__(
        self,
        depth: int,
        num_classes: int = 10,
        in_channels: int = 3,
        zero_init_residual: bool = False,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        fused: bool = False,
        shortcut: str | None = "A",
        memory: str = "fast",
    ) -> None:
        super().__init__()
        if isinstance(depth, bool) or not isinstance(depth, int) or depth < 8 or depth % 6 != 2:
            raise ValueError(f"depth must be 6n+2 with n >= 1, such as 20 or 56, got {depth!r}")
        block = PlainBlock if shortcut is None else BasicBlock
        check_options(block, shortcut, num_classes, zero_init_residual)
        check_positive("in_channels", in_channels)
        check_memory(memory)
        norm_layer = norm_layer or nn.BatchNorm2d

        self.fused = fused
        self.in_channels = in_channels
        self.conv1 = conv3x3(in_channels, 16)
        self.bn1 = norm_layer(16)
        self.relu = make_relu(fused)
        inplanes = 16
        for index, planes in enumerate((16, 32, 64)):
            stage = make_stage(
                block,
                inplanes,
                planes,
                (depth - 2) // 6,
                stride=1 if index == 0 else 2,
                shortcut=shortcut,
                norm_layer=norm_layer,
                fused=fused,
                memory=memory,
            )
            setattr(self, f"layer{index + 1}", stage)
            inplanes = planes
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inplanes, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, channels=self.in_channels)
        x = conv_norm_act(x, self.conv1, self.bn1, self.relu, fused=self.fused)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)

        x = self.avgpool(x)
        return self.fc(torch.flatten(x, 1))


def _network(
    name: str, depth: int, weights: str | PathLike | None, options: dict[str, Any]
) -> CifarResNet:
    source = resolve(weights, name)
    model = CifarResNet(depth, **options)
    if source is not None:
        load(model, source)
    return model


def resnet20(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-20. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet20", 20, weights, options)


def resnet32(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-32. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet32", 32, weights, options)


def resnet44(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-44. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet44", 44, weights, options)


def resnet56(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-56. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet56", 56, weights, options)


def resnet110(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-110. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet110", 110, weights, options)


def resnet1202(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-1202. `weights`: None or a file; `options`: the arguments of `CifarResNet`."""
    return _network("resnet1202", 1202, weights, options)


def plain20(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-20 without its shortcuts. `options` are the arguments of `CifarResNet`."""
    return _network("plain20", 20, weights, _plain(options))


def plain32(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-32 without its shortcuts. `options` are the arguments of `CifarResNet`."""
    return _network("plain32", 32, weights, _plain(options))


def plain44(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-44 without its shortcuts. `options` are the arguments of `CifarResNet`."""
    return _network("plain44", 44, weights, _plain(options))


def plain56(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-56 without its shortcuts. `options` are the arguments of `CifarResNet`."""
    return _network("plain56", 56, weights, _plain(options))


def plain110(*, weights: str | PathLike | None = None, **options: Any) -> CifarResNet:
    """ResNet-110 without its shortcuts. `options` are the arguments of `CifarResNet`."""
    return _network("plain110", 110, weights, _plain(options))


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    if options.get("shortcut") is not None:
        raise ValueError(f"shortcut must be None for a plain network, got {options['shortcut']!r}")
    return {**options, "shortcut": None}
