"""ResNet-18 to ResNet-152 and plain-18/34 for ImageNet (table 1 of the paper), ResNeXt, wide ones.

Constructors, attribute names and state_dicts are torchvision's; the same seed gives the same
weights. On top of torchvision's arguments every constructor takes

* `fused`: run convolution + BN + ReLU (+ shortcut) as fused operators; same modules and numbers.
* `variant`: where a bottleneck strides: "v1.5" (default, torchvision's) or "v1", the paper's.
* `shortcut`: "A", "B" (default, torchvision's) or "C": section 4.1 of the paper.
* `memory`: "fast" (default), or "low": fused blocks keep less for the backward pass even where that
  takes longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import Enum
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import (
    BasicBlock,
    Block,
    Bottleneck,
    PlainBlock,
    check_memory,
    check_variant,
    make_relu,
    stem,
)
from .stages import check_images, check_options, check_positive, initialise, make_stage
from .weights import check_published, load, resolve

Weights = Enum | str | PathLike | None


class ResNet(nn.Module):
    """The paper's ImageNet network: images [N, 3, H, W] to scores [N, num_classes].

    Args:
        block: `BasicBlock`, `Bottleneck` or `PlainBlock`.
        layers: blocks per stage, four numbers.
        num_classes: outputs of the fully connected layer.
        zero_init_residual: start every residual branch at zero.
        groups, width_per_group: of the 3x3 convolutions of a `Bottleneck`.
        replace_stride_with_dilation: three booleans, for layer2 to layer4.
        norm_layer: makes a normalisation from a number of channels; `nn.BatchNorm2d` by default.
        fused, variant, shortcut, memory: see the head of this file; `shortcut` is None for
            `PlainBlock`.

    Raises:
        ValueError: an argument is outside what is listed here, or the block cannot have it.
        NotImplementedError: dilation with a block other than `Bottleneck`.
    """

    def __init__(
        self,
        block: type[Block],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        fused: bool = False,
        variant: str = "v1.5",
        shortcut: str | None = "B",
        memory: str = "fast",
    ) -> None:
        super().__init__()
        if replace_stride_with_dilation is None:
            replace_stride_with_dilation = (False, False, False)
        if len(replace_stride_with_dilation) != 3:
            raise ValueError(
                "replace_stride_with_dilation should be None "
                f"or a 3-element tuple, got {replace_stride_with_dilation}"
            )
        check_options(block, shortcut, num_classes, zero_init_residual)
        check_positive("groups", groups)
        check_positive("width_per_group", width_per_group)
        check_variant(variant)
        check_memory(memory)
        norm_layer = norm_layer or nn.BatchNorm2d
        # basic blocks have no 1x1 convolution, so both variants are the same network
        options = {"variant": variant} if issubclass(block, Bottleneck) else {}

        self.fused = fused
        self.inplanes = 64
        self.dilation = 1
        self.conv1 = nn.Conv2d(3, 64, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = make_relu(fused)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for index, dilate in enumerate((False, *replace_stride_with_dilation)):
            planes = 64 * 2**index
            stride = 1 if index == 0 else 2
            first_dilation = self.dilation
            if dilate:
                self.dilation *= stride
                stride = 1
            stage = make_stage(
                block,
                self.inplanes,
                planes,
                layers[index],
                stride=stride,
                shortcut=shortcut,
                norm_layer=norm_layer,
                fused=fused,
                first_dilation=first_dilation,
                dilation=self.dilation,
                groups=groups,
                base_width=width_per_group,
                memory=memory,
                **options,
            )
            setattr(self, f"layer{index + 1}", stage)
            self.inplanes = planes * block.expansion
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(self.inplanes, num_classes)
        initialise(self, zero_init_residual=zero_init_residual)

    def forward(self, x: Tensor) -> Tensor:
        check_images(x, channels=3)
        x = stem(x, self.conv1, self.bn1, self.relu, self.maxpool, fused=self.fused)

        x = self.layer1(x)
        x = self.layer2(x)
        x = self.layer3(x)
        x = self.layer4(x)

        x = self.avgpool(x)
        return self.fc(torch.flatten(x, 1))


def _resnet(
    name: str,
    block: type[Block],
    layers: Sequence[int],
    weights: Weights,
    progress: bool,
    options: dict[str, Any],
) -> ResNet:
    source = resolve(weights, name)
    if isinstance(source, Enum):
        _require(options, "num_classes", len(source.meta["categories"]))
        check_published(source, options.get("variant", "v1.5"), bottleneck=block is Bottleneck)
    model = ResNet(block, layers, **options)
    if source is not None:
        load(model, source, progress)
    return model


def _require(options: dict[str, Any], name: str, value: int) -> None:
    """Set an option that the network or its weights determine, as torchvision does."""
    if options.setdefault(name, value) != value:
        raise ValueError(
            f"The parameter '{name}' expected value {value} but got {options[name]} instead."
        )


def resnet18(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-18. `options` are the arguments of `ResNet`; see `fastres.models.weights.resolve`."""
    return _resnet("resnet18", BasicBlock, (2, 2, 2, 2), weights, progress, options)


def resnet34(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-34. `options` are the arguments of `ResNet`; see `fastres.models.weights.resolve`."""
    return _resnet("resnet34", BasicBlock, (3, 4, 6, 3), weights, progress, options)


def resnet50(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-50. `options` are the arguments of `ResNet`; see `fastres.models.weights.resolve`."""
    return _resnet("resnet50", Bottleneck, (3, 4, 6, 3), weights, progress, options)


def resnet101(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-101. `options` are the arguments of `ResNet`; see `fastres.models.weights.resolve`."""
    return _resnet("resnet101", Bottleneck, (3, 4, 23, 3), weights, progress, options)


def resnet152(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-152. `options` are the arguments of `ResNet`; see `fastres.models.weights.resolve`."""
    return _resnet("resnet152", Bottleneck, (3, 8, 36, 3), weights, progress, options)


def resnext50_32x4d(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-50 32x4d (arXiv 1611.05431): ResNet-50 with `groups` 32, `width_per_group` 4."""
    _require(options, "groups", 32)
    _require(options, "width_per_group", 4)
    return _resnet("resnext50_32x4d", Bottleneck, (3, 4, 6, 3), weights, progress, options)


def resnext101_32x8d(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-101 32x8d (arXiv 1611.05431): ResNet-101 with `groups` 32, `width_per_group` 8."""
    _require(options, "groups", 32)
    _require(options, "width_per_group", 8)
    return _resnet("resnext101_32x8d", Bottleneck, (3, 4, 23, 3), weights, progress, options)


def resnext101_64x4d(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNeXt-101 64x4d (arXiv 1611.05431): ResNet-101 with `groups` 64, `width_per_group` 4."""
    _require(options, "groups", 64)
    _require(options, "width_per_group", 4)
    return _resnet("resnext101_64x4d", Bottleneck, (3, 4, 23, 3), weights, progress, options)


def wide_resnet50_2(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """Wide ResNet-50-2 (arXiv 1605.07146): ResNet-50 with `width_per_group` 128."""
    _require(options, "width_per_group", 128)
    return _resnet("wide_resnet50_2", Bottleneck, (3, 4, 6, 3), weights, progress, options)


def wide_resnet101_2(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """Wide ResNet-101-2 (arXiv 1605.07146): ResNet-101 with `width_per_group` 128."""
    _require(options, "width_per_group", 128)
    return _resnet("wide_resnet101_2", Bottleneck, (3, 4, 23, 3), weights, progress, options)


def plain18(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-18 without its shortcuts. `options` are the arguments of `ResNet`."""
    options.setdefault("shortcut", None)
    return _resnet("plain18", PlainBlock, (2, 2, 2, 2), weights, progress, options)


def plain34(*, weights: Weights = None, progress: bool = True, **options: Any) -> ResNet:
    """ResNet-34 without its shortcuts. `options` are the arguments of `ResNet`."""
    options.setdefault("shortcut", None)
    return _resnet("plain34", PlainBlock, (3, 4, 6, 3), weights, progress, options)
