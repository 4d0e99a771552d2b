"""The workloads that are measured: operators at ResNet-50's layers, blocks and networks."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional, models
from ..functional import BatchNormState
from ..interop import fuse
from ..layers import BasicBlock, Bottleneck
from ..models.imagenet import ResNet
from .workload import CPU, Workload

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# name: C_in, C_out, H = W, kernel, stride of the convolutions that make up most of ResNet-50
CONVOLUTIONS = {
    "conv1 7x7": (3, 64, 224, 7, 2),
    "layer1 1x1 reduce": (256, 64, 56, 1, 1),
    "layer1 3x3": (64, 64, 56, 3, 1),
    "layer1 1x1 expand": (64, 256, 56, 1, 1),
    "layer2 3x3": (128, 128, 28, 3, 1),
    "layer2 3x3 stride 2": (128, 128, 56, 3, 2),
    "layer3 3x3": (256, 256, 14, 3, 1),
    "layer3 1x1 expand": (256, 1024, 14, 1, 1),
    "layer4 3x3": (512, 512, 7, 3, 1),
}
# name: C, H = W of the outputs of ResNet-50's stages' convolutions
ACTIVATIONS = {
    "stem": (64, 112),
    "layer1": (256, 56),
    "layer2": (512, 28),
    "layer3": (1024, 14),
    "layer4": (2048, 7),
}
# C_out of the narrow convolutions of the blocks of each stage
PLANES = {"layer1": 64, "layer2": 128, "layer3": 256, "layer4": 512}
BLOCKS = {"bottleneck": Bottleneck, "basic": BasicBlock}
_IMAGE = 224  # pixels that the sizes above are of
# networks with one block a stage, to try a measurement with
SMALL = {"bottleneck14": Bottleneck, "basic10": BasicBlock}
JOINS = ("identity", "bn", "pad")


class Join(nn.Module):
    """relu(bn(y) [+ shortcut]) of a raw convolution output, as one operator or as PyTorch's."""

    def __init__(self, channels: int, kind: str | None, fused: bool) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.shortcut_bn = nn.BatchNorm2d(channels) if kind == "bn" else None
        self.kind, self.fused = kind, fused

    def forward(self, y: Tensor, shortcut: Tensor | None = None) -> Tensor:
        if self.fused:
            bn = BatchNormState.of(self.bn)
            if self.kind is None:
                return functional.bn_act(y, bn)
            s_bn = None if self.shortcut_bn is None else BatchNormState.of(self.shortcut_bn)
            stride = 2 if self.kind == "pad" else 1
            return functional.bn_add_act(y, bn, shortcut, shortcut_bn=s_bn, shortcut_stride=stride)
        out = self.bn(y)
        if self.kind == "bn":
            out.add_(self.shortcut_bn(shortcut))
        elif self.kind == "pad":
            out.add_(pad_by_slices(shortcut, out.shape[1]))
        elif self.kind == "identity":
            out.add_(shortcut)
        return F.relu_(out)


def pad_by_slices(x: Tensor, out_channels: int) -> Tensor:
    """Option A as it is usually written in PyTorch."""
    return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, out_channels - x.shape[1]))


class ConvNormAct(nn.Module):
    """relu(bn(conv(x))), as one operator or as PyTorch's three."""

    def __init__(self, shape: tuple[int, int, int, int, int], fused: bool) -> None:
        super().__init__()
        c_in, c_out, _, kernel, stride = shape
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return functional.conv_bn_act(
                x, self.conv.weight, BatchNormState.of(self.bn),
                stride=self.conv.stride, padding=self.conv.padding,
            )  # fmt: skip
        return F.relu_(self.bn(self.conv(x)))


def network(
    name: str,
    batch: int,
    image_size: int,
    dtype: str = "fp32",
    *,
    device: torch.device = CPU,
    optimizer: bool = False,
) -> Workload:
    """A training step of a network on square images.

    name: of `models.names()` or `SMALL`, or "torchvision.resnet50" and the like, which
    `fastres.fuse` fuses.
    """

    def build(fused: bool) -> nn.Module:
        library, _, theirs = name.rpartition(".")
        if library == "torchvision":
            model = getattr(import_module("torchvision.models"), theirs)()
            return fuse(model) if fused else model
        if name in SMALL:
            return ResNet(SMALL[name], (1, 1, 1, 1), num_classes=10, fused=fused)
        return models.create(name, fused=fused)

    classes = build(False).fc.out_features

    title = f"{name} {dtype}, batch {batch}, {image_size}x{image_size}"
    return Workload(
        title, build, ((batch, 3, image_size, image_size),), classes, DTYPES[dtype],
        optimizer=optimizer, device=device, model=name, image_size=image_size,
    )  # fmt: skip


def inference(
    name: str, batch: int, image_size: int, dtype: str = "fp32", *, device: torch.device = CPU
) -> Workload:
    """A forward pass in eval mode of what `network` trains."""
    workload = network(name, batch, image_size, dtype, device=device)
    return replace(workload, name=f"inference of {workload.name}", inference=True, kind="infer")


def block(
    kind: str, batch: int, size: int, planes: int, dtype: str = "fp32", *, device=CPU
) -> Workload:
    """Forward and backward of a "bottleneck" or "basic" block with an identity shortcut."""
    cls = BLOCKS[kind]
    channels = planes * cls.expansion

    def build(fused: bool) -> nn.Module:
        return cls(channels, planes, fused=fused)

    title = f"{kind} block {channels} ch {size}x{size} {dtype}, batch {batch}"
    workload = _activation_workload(title, build, ((batch, channels, size, size),), dtype, device)
    layer = next((name for name, width in PLANES.items() if width == planes), str(planes))
    # of the image whose stage has activations of this size
    pixels = size * 4 * planes // PLANES["layer1"]
    return replace(workload, kind="block", model=f"{kind}/{layer}", image_size=pixels)


def join(
    kind: str | None, layer: str, batch: int, dtype: str = "fp32", *, image_size: int = _IMAGE,
    device=CPU,
) -> Workload:  # fmt: skip
    """Forward and backward of bn_act (kind None) or bn_add_act at a layer of `ACTIVATIONS`."""
    channels, size = ACTIVATIONS[layer]
    size = scaled(size, image_size)
    shape = (batch, channels, size, size)
    shapes = (shape,)
    if kind == "pad":
        shapes += ((batch, channels // 2, 2 * size, 2 * size),)
    elif kind is not None:
        shapes += (shape,)
    title = f"{'bn_act' if kind is None else f'bn_add_act {kind}'} {layer} {dtype}, batch {batch}"

    def build(fused: bool) -> nn.Module:
        return Join(channels, kind, fused)

    workload = _activation_workload(title, build, shapes, dtype, device)
    return replace(workload, kind="op", model=join_name(kind, layer), image_size=image_size)


def convolution(
    layer: str, batch: int, dtype: str = "fp32", *, image_size: int = _IMAGE, device=CPU
) -> Workload:
    """Forward and backward of conv_bn_act at a layer of `CONVOLUTIONS`."""
    c_in, c_out, size, kernel, stride = CONVOLUTIONS[layer]
    shape = (c_in, c_out, scaled(size, image_size), kernel, stride)

    def build(fused: bool) -> nn.Module:
        return ConvNormAct(shape, fused)

    title = f"conv_bn_act {layer} {dtype}, batch {batch}"
    images = ((batch, shape[0], shape[2], shape[2]),)
    workload = _activation_workload(title, build, images, dtype, device)
    # the images that come into a network have no gradient
    return replace(
        workload, input_gradients=shape[0] != 3, kind="op", model=convolution_name(layer),
        image_size=image_size,
    )  # fmt: skip


def scaled(size: int, image_size: int) -> int:
    """Pixels of an activation that has `size` in a network of 224 pixel images."""
    return max(1, size * image_size // _IMAGE)


def join_name(kind: str | None, layer: str) -> str:
    """What `operator` calls `join(kind, layer, ...)`."""
    return f"bn_act/{layer}" if kind is None else f"bn_add_act-{kind}/{layer}"


def convolution_name(layer: str) -> str:
    """What `operator` calls `convolution(layer, ...)`."""
    return f"conv_bn_act/{layer.replace(' ', '-')}"


OPERATORS = {
    **{
        join_name(kind, layer): (join, kind, layer)
        for layer in ACTIVATIONS
        for kind in (None, *JOINS)
    },
    **{convolution_name(layer): (convolution, layer) for layer in CONVOLUTIONS},
}


def operator(
    name: str, batch: int, image_size: int = _IMAGE, dtype: str = "fp32", *, device=CPU
) -> Workload:
    """Forward and backward of an operator of `OPERATORS`."""
    make, *which = OPERATORS[name]
    return make(*which, batch, dtype, image_size=image_size, device=device)


def stage_block(
    name: str, batch: int, image_size: int = _IMAGE, dtype: str = "fp32", *, device=CPU
) -> Workload:
    """`block` as it stands in a stage of a network, "bottleneck/layer1" and the like."""
    kind, _, layer = name.partition("/")
    planes = PLANES[layer]
    size = scaled(ACTIVATIONS[layer][1], image_size)
    workload = block(kind, batch, size, planes, dtype, device=device)
    return replace(workload, image_size=image_size)


def _activation_workload(title, build, shapes, dtype: str, device: torch.device) -> Workload:
    return Workload(
        title, build, shapes, autocast=DTYPES[dtype], input_gradients=True, device=device
    )  # fmt: skip
