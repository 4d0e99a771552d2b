"""The constants of a run of residual blocks, and what its forward keeps for its backward."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .batch_norm import Normalisation
from .conv_bn_act import Geometry
from .moment_form import Moments, Prologue


class Layer(NamedTuple):
    """Constants of one convolution and the BN after it."""

    geometry: Geometry
    bn: Normalisation


class Parameters(NamedTuple):
    """Tensors of one convolution and the BN after it."""

    weight: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None


# tensors of a layer
TENSORS = len(Parameters._fields)


class Block(NamedTuple):
    """Constants of relu(F(x) + shortcut(x)).

    shortcut: "identity", "pad" (option A, read at every `shortcut_stride`-th place), "projection"
    or "none". `moments`: the last layer is in moment form; `projected_moments`: so is the
    projection.
    """

    layers: tuple[Layer, ...]
    shortcut: str
    shortcut_stride: int
    projection: Layer | None
    moments: bool
    projected_moments: bool

    @property
    def all_layers(self) -> tuple[Layer, ...]:
        """The layers, and after them the projection if there is one."""
        return self.layers if self.projection is None else (*self.layers, self.projection)

    @property
    def tensors(self) -> int:
        """How many tensors belong to the block."""
        return TENSORS * len(self.all_layers)


class SavedLayer(NamedTuple):
    """One layer as its backward reads it; y is None in moment form."""

    weight: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    y: Tensor | None
    mean: Tensor
    invstd: Tensor

    @property
    def normalisation(self) -> Prologue:
        """The layer's BN: relu(bn(y)) is what the next layer convolves."""
        return Prologue(self.mean, self.invstd, self.gamma, self.beta)


class SavedBlock(NamedTuple):
    """`layers` as `Block.all_layers`; `counts` are the values behind each one's statistics."""

    layers: tuple[SavedLayer, ...]
    moments: Moments | None
    projected: Moments | None
    counts: tuple[Tensor | int, ...]


def flatten(block: SavedBlock) -> list[Tensor | None]:
    """The tensors of a block in a fixed order, for `save_for_backward`."""
    groups = [*block.layers, block.moments, block.projected]
    return [tensor for group in groups if group is not None for tensor in group]


def restore(
    block: Block, tensors: tuple[Tensor | None, ...], counts: tuple[Tensor | int, ...]
) -> tuple[SavedBlock, tuple[Tensor | None, ...]]:
    """The block that `flatten` took apart, and the tensors after its own."""
    layers = []
    width = len(SavedLayer._fields)
    for _ in block.all_layers:
        layers.append(SavedLayer(*tensors[:width]))
        tensors = tensors[width:]
    width = len(Moments._fields)
    moments = projected = None
    if block.moments:
        moments, tensors = Moments(*tensors[:width]), tensors[width:]
    if block.projected_moments:
        projected, tensors = Moments(*tensors[:width]), tensors[width:]
    return SavedBlock(tuple(layers), moments, projected, counts), tensors
