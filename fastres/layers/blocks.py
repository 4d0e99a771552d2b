"""The building blocks: figure 5 of the paper, and the block of its plain networks.

Attributes are named as torchvision names them, so that state_dicts are interchangeable.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.fx import Proxy

from ..functional import ResidualBlock, residual_blocks
from ..functional.blocks import MEMORY
from .around import as_node
from .fusion import can_fuse, conv_norm_act, conv_norm_add_act
from .residual import block_obstacle, describe, kind_obstacle

VARIANTS = ("v1", "v1.5")


def conv3x3(
    in_channels: int, out_channels: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """3x3 convolution that keeps the size at stride 1, without a bias."""
    return nn.Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    """1x1 convolution without a bias."""
    return nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False)


class Block(nn.Module):
    """What residual and plain blocks share: they run as a whole where nobody looks inside."""

    # names of each convolution, its BN and the ReLU after them (the last one's: after the shortcut)
    layer_names: tuple[tuple[str, str, str], ...]
    has_shortcut = True

    fused: bool
    memory: str
    downsample: nn.Module | None

    def forward(self, x: Tensor) -> Tensor:
        if self.fused and isinstance(x, Proxy):
            node = as_node(self, x)
            if node is not None:
                return node
        if self.obstacle() is None:
            return residual_blocks(x, (self.describe(),), memory=self.memory)
        return self.layer_by_layer(x)

    def layer_by_layer(self, x: Tensor) -> Tensor:
        """The forward as one fused operator a layer, or as the modules themselves."""
        *first, last = ([getattr(self, name) for name in names] for names in self.layer_names)
        out = x
        for layer in first:
            out = conv_norm_act(out, *layer, fused=self.fused)
        if not self.has_shortcut:
            return conv_norm_act(out, *last, fused=self.fused)
        return conv_norm_add_act(out, *last, x, self.downsample, fused=self.fused)

    def obstacle(self) -> str | None:
        """Why the block does not run as a whole at present, None if it does."""
        return block_obstacle(self, self.layer_names) if self.fused else "made with fused=False"

    def fuses_layers(self) -> bool:
        """Whether `layer_by_layer` runs any fused operator at present."""
        layers = ([getattr(self, name) for name in names] for names in self.layer_names)
        return self.fused and any(can_fuse(*layer) for layer in layers)

    @classmethod
    def kind_obstacle(cls, block: nn.Module) -> str | None:
        """Why an object of another class, with layers of these names, has nothing to fuse."""
        return kind_obstacle(block, cls.layer_names)

    def describe(self) -> ResidualBlock:
        """The block as `functional.residual_blocks` takes it."""
        return describe(self, self.layer_names, plain=not self.has_shortcut)


def layers_named(pairs: int, activation: str = "relu") -> tuple[tuple[str, str, str], ...]:
    """conv1, bn1 to conv`pairs`, bn`pairs`, each with `activation` ("{}" stands for its number)."""
    return tuple((f"conv{i}", f"bn{i}", activation.format(i)) for i in range(1, pairs + 1))


class BasicBlock(Block):
    """relu(F(x) + shortcut(x)) with F of two 3x3 convolutions.

    Args:
        inplanes: channels of x [N, inplanes, H, W].
        planes: channels of the output.
        stride: stride of the first convolution.
        downsample: the shortcut; None is the identity.
        groups, base_width, dilation: accepted for the sake of one signature with `Bottleneck`.
        norm_layer: makes a normalisation from a number of channels; `nn.BatchNorm2d` by default.
        fused: run fused operators wherever the inner modules are as they were made.
        memory: "fast", or "low" to keep less for the backward pass even where that is slower.

    Raises:
        ValueError: `groups` is not 1 or `base_width` is not 64.
        NotImplementedError: `dilation` is above 1.
    """

    expansion = 1
    layer_names = layers_named(2)

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        fused: bool = False,
        memory: str = "fast",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if groups != 1 or base_width != 64:
            raise ValueError(
                f"{name} only supports groups=1 and base_width=64, got groups={groups} and "
                f"base_width={base_width}"
            )
        if dilation > 1:
            raise NotImplementedError(f"Dilation > 1 not supported in {name}, got {dilation}")
        check_memory(memory)
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = make_relu(fused)
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride
        self.fused = fused
        self.memory = memory


class PlainBlock(BasicBlock):
    """relu(F(x)): a `BasicBlock` without its shortcut, two layers of the paper's plain networks.

    Arguments and errors are those of `BasicBlock`.

    Raises:
        ValueError: `downsample` is given.
    """

    has_shortcut = False

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        fused: bool = False,
        memory: str = "fast",
    ) -> None:
        if downsample is not None:
            raise ValueError(
                f"downsample must be None in a block without a shortcut, got {downsample!r}"
            )
        super().__init__(
            inplanes, planes, stride, None, groups, base_width, dilation, norm_layer,
            fused=fused, memory=memory,
        )  # fmt: skip


class Bottleneck(Block):
    """relu(F(x) + shortcut(x)) with F of a 1x1, a 3x3 and a four times wider 1x1 convolution.

    Args:
        inplanes: channels of x [N, inplanes, H, W].
        planes: a quarter of the output's channels.
        stride: stride of the block, in the convolution that `variant` names.
        downsample: the shortcut; None is the identity.
        groups: groups of the 3x3 convolution (ResNeXt).
        base_width: width of the 3x3 convolution per group, in 64ths of `planes`.
        dilation: dilation of the 3x3 convolution.
        norm_layer: makes a normalisation from a number of channels; `nn.BatchNorm2d` by default.
        fused: run fused operators wherever the inner modules are as they were made.
        memory: "fast", or "low" to keep less for the backward pass even where that is slower.
        variant: "v1" strides in the first 1x1 (the paper), "v1.5" in the 3x3 (torchvision, timm).

    Raises:
        ValueError: `variant` is neither.
    """

    expansion = 4
    layer_names = layers_named(3)

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[..., nn.Module] | None = None,
        *,
        fused: bool = False,
        memory: str = "fast",
        variant: str = "v1.5",
    ) -> None:
        super().__init__()
        check_variant(variant)
        check_memory(memory)
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups
        stride_1x1, stride_3x3 = (stride, 1) if variant == "v1" else (1, stride)
        self.conv1 = conv1x1(inplanes, width, stride_1x1)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride_3x3, groups, dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = make_relu(fused)
        self.downsample = downsample
        self.stride = stride
        self.fused = fused
        self.memory = memory


def make_relu(fused: bool) -> nn.ReLU:
    """The ReLU of a block.

    A fused block calls it only next to a hooked or foreign module, whose output an in-place ReLU
    must not overwrite (full backward hooks raise on it).
    """
    return nn.ReLU(inplace=not fused)


def check_variant(variant: str) -> None:
    """Raise ValueError unless `variant` is "v1" or "v1.5"."""
    if variant not in VARIANTS:
        raise ValueError(f"variant must be one of 'v1', 'v1.5', got {variant!r}")


def check_memory(memory: str) -> None:
    """Raise ValueError unless `memory` is "fast" or "low"."""
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of 'fast', 'low', got {memory!r}")
