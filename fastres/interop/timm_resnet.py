"""timm's ResNet family with fused blocks: the same objects under another class.

Every class here derives from the one it stands for and adds no state, so that an object may change
from one to the other and back. Imported only where timm has been.
"""

from __future__ import annotations

from timm.models import resnet
from torch import Tensor, nn
from torch.fx import Proxy

from ..layers.blocks import Block, layers_named
from ..layers.fusion import module_obstacle
from .stem import Stem

# what a block may have beside its convolutions, and we do not fuse
_EXTRAS = ("drop_block", "aa", "se", "drop_path")


def extra_obstacle(block: nn.Module) -> str | None:
    """Why a piece of a block beside its convolutions must be called; None: none must be."""
    for name in _EXTRAS:
        piece = getattr(block, name, None)
        found = None if piece is None else module_obstacle(name, piece, nn.Identity)
        if found is not None:
            return found
    return None


def extra_kind(block: nn.Module) -> str | None:
    """Which piece of a block is neither convolution nor BN nor ReLU nor shortcut; None: none is."""
    for name in _EXTRAS:
        piece = getattr(block, name, None)
        if piece is not None and not isinstance(piece, nn.Identity):
            return f"{name} is a {type(piece).__name__}"
    return None


class _Block(Block):
    fused = True
    memory = "fast"

    @classmethod
    def kind_obstacle(cls, block: nn.Module) -> str | None:
        return extra_kind(block) or super().kind_obstacle(block)

    def obstacle(self) -> str | None:
        return extra_obstacle(self) or super().obstacle()

    def fuses_layers(self) -> bool:
        return extra_obstacle(self) is None and super().fuses_layers()

    def layer_by_layer(self, x: Tensor) -> Tensor:
        if extra_obstacle(self) is not None:
            # one that came, or was hooked, after fusing
            return super(Block, self).forward(x)
        return super().layer_by_layer(x)


class BasicBlock(_Block, resnet.BasicBlock):
    """timm's `BasicBlock`, run as a whole."""

    layer_names = layers_named(2, "act{}")


class Bottleneck(_Block, resnet.Bottleneck):
    """timm's `Bottleneck`, run as a whole."""

    layer_names = layers_named(3, "act{}")


class ResNet(Stem, resnet.ResNet):
    """timm's `ResNet` with its stem in one step."""

    stem_names = ("conv1", "bn1", "act1", "maxpool")

    def forward_features(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return super().forward_features(x)
        x = self.run_stem(x)
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        if self.grad_checkpointing:
            return resnet.checkpoint_seq(stages, x, flatten=True)
        for stage in stages:
            x = stage(x)
        return x


# what becomes what
CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: BasicBlock,
    resnet.Bottleneck: Bottleneck,
    resnet.ResNet: ResNet,
}
BLOCKS = (resnet.BasicBlock, resnet.Bottleneck)
