"""Whole residual blocks, several of them in a run, as one step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._checks import (
    check_activation,
    check_bn,
    check_conv_of,
    check_identity,
    check_training_batch,
)
from ..autograd import Block, Layer, ResidualBlocks
from ..backends import rows_per_channel
from .state import (
    BatchNormState,
    Measured,
    autocast,
    check_transforms,
    geometry_of,
    normalisation_of,
    take_measured,
    update_all_running,
)

MEMORY = ("fast", "low")


class ConvBN(NamedTuple):
    """A convolution without a bias, weight [C_out, C_in / groups, KH, KW], and the BN after it."""

    weight: Tensor
    bn: BatchNormState
    stride: int | tuple[int, int] = 1
    padding: int | tuple[int, int] = 0
    dilation: int | tuple[int, int] = 1
    groups: int = 1


class ResidualBlock(NamedTuple):
    """relu(F(x) + shortcut(x)): F is `layers` with a ReLU after each but the last.

    shortcut: None is the identity, a `ConvBN` a projection, an int the zero-padded identity
    (option A) of that stride, "none" no shortcut at all.
    """

    layers: tuple[ConvBN, ...]
    shortcut: ConvBN | int | str | None = None


def residual_blocks(x: Tensor, blocks: Sequence[ResidualBlock], *, memory: str = "fast") -> Tensor:
    """x [N, C, H, W] through a run of residual blocks, updating running statistics.

    Nothing between the blocks is visible to anybody else, hooks included; in return the gradient
    passes from block to block already masked, and the first 1x1 convolution of a block is computed
    on its input while that is being made.

    Args:
        x: input, floating.
        blocks: the blocks in order, at least one.
        memory: "fast", or "low" to keep less for the backward pass even where that takes longer.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: no blocks, or shapes, devices or dtypes do not fit, or training statistics
            would come from a single value per channel.

    Source: He et al. 2015, equations 1 and 2, figure 5.
    """
    overridable = (x, *(layer.weight for block in blocks for layer in block.layers))
    if has_torch_function(overridable):
        return handle_torch_function(residual_blocks, overridable, x, blocks, memory=memory)
    check_transforms("residual_blocks")
    if not blocks:
        raise ValueError("blocks must hold at least one block, got none")
    if memory not in MEMORY:
        raise ValueError(f"memory must be one of 'fast', 'low', got {memory!r}")
    (x,) = autocast(x)
    check_activation("x", x)
    planned = _Planned([], [], [])
    size: Sequence[int] = x.shape
    for block in blocks:
        size = _plan(x, size, block, memory, planned)
    out, *statistics = ResidualBlocks.apply(x, tuple(planned.blocks), *planned.tensors)
    following = iter(statistics)
    update_all_running(
        [Measured(bn, *take_measured(following, bn), extent) for bn, extent in planned.states]
    )
    return out


class _Planned(NamedTuple):
    """The constants and tensors of the run, and for each BN its state and its input's size."""

    blocks: list[Block]
    tensors: list[Tensor | None]
    states: list[tuple[BatchNormState, Sequence[int]]]


def _plan(
    like: Tensor, size: Sequence[int], block: ResidualBlock, memory: str, planned: _Planned
) -> Sequence[int]:
    """Check a block whose input has `size`, add it to the plan, return its output's size."""
    if not block.layers:
        raise ValueError("layers must hold at least one convolution, got none")
    layers, here = [], size
    for given in block.layers:
        layer, here = _layer(like, here, given, planned)
        layers.append(layer)
    projection, stride, kind = None, 1, "identity"
    if isinstance(block.shortcut, ConvBN):
        kind = "projection"
        projection, found = _layer(like, size, block.shortcut, planned)
        if tuple(found) != tuple(here):
            raise ValueError(
                f"shortcut must give the block's output {tuple(here)}, got {tuple(found)}"
            )
    elif block.shortcut == "none":
        kind = "none"
    else:
        stride = 1 if block.shortcut is None else block.shortcut
        check_identity(size, here, stride)
        if stride != 1 or size[1] != here[1]:
            kind = "pad"
    least = least_rows(block.layers, memory, like)
    moments = least is not None and here[0] * here[2] * here[3] >= least
    projected = moments and projection is not None and _pointwise(block.shortcut, strided=True)
    planned.blocks.append(Block(tuple(layers), kind, stride, projection, moments, projected))
    return here


def _layer(
    like: Tensor, size: Sequence[int], given: ConvBN, planned: _Planned
) -> tuple[Layer, Sequence[int]]:
    geometry = geometry_of(given.stride, given.padding, given.dilation, given.groups)
    size = check_conv_of(size, like, given.weight, *geometry)
    check_bn("bn", given.bn, size[1], like.device)
    check_training_batch(given.bn, size)
    planned.tensors.extend((given.weight, *given.bn[:4]))
    planned.states.append((given.bn, size))
    return Layer(geometry, normalisation_of(given.bn)), size


def _pointwise(layer: ConvBN, *, strided: bool) -> bool:
    """Whether the layer's convolution is 1x1, without padding and groups, at stride 1 if not
    `strided`."""
    geometry = geometry_of(layer.stride, layer.padding, layer.dilation, layer.groups)
    plain = tuple(layer.weight.shape[2:]) == (1, 1) and geometry.groups == 1
    return plain and geometry.padding == (0, 0) and (strided or geometry.stride == (1, 1))


def least_rows(layers: Sequence[ConvBN], memory: str, like: Tensor) -> int | None:
    """From how many rows N*H*W on the last layer of a block whose input is like `like` is in moment
    form; None: never.

    It must be a 1x1 convolution to at least twice the channels that it reads.
    """
    outer, inner = layers[-1].weight.shape[:2]
    if len(layers) < 2 or not _pointwise(layers[-1], strided=False) or outer < 2 * inner:
        return None
    return 0 if memory == "low" else rows_per_channel(like.device, like.dtype) * outer
