"""torchvision's ResNet family with fused blocks: the same objects under another class.

Every class here derives from the one it stands for and adds no state, so that an object may change
from one to the other and back. Imported only where torchvision has been.
"""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torch.fx import Proxy
from torchvision.models import resnet
from torchvision.models._utils import IntermediateLayerGetter as _LayerGetter
from torchvision.models.segmentation import deeplabv3, fcn
from torchvision.ops.misc import Conv2dNormActivation as _Conv2dNormActivation
from torchvision.ops.misc import FrozenBatchNorm2d

from ..layers.blocks import Block, layers_named
from ..layers.fusion import NORMS
from ..layers.sequence import FusedSequential
from .stem import Stem

if FrozenBatchNorm2d not in NORMS:
    NORMS.append(FrozenBatchNorm2d)


class BasicBlock(Block, resnet.BasicBlock):
    """torchvision's `BasicBlock`, run as a whole."""

    layer_names = layers_named(2)
    fused = True
    memory = "fast"


class Bottleneck(Block, resnet.Bottleneck):
    """torchvision's `Bottleneck`, run as a whole."""

    layer_names = layers_named(3)
    fused = True
    memory = "fast"


class ResNet(Stem, resnet.ResNet):
    """torchvision's `ResNet` with its stem in one step."""

    def _forward_impl(self, x: Tensor) -> Tensor:
        if isinstance(x, Proxy):
            return super()._forward_impl(x)
        x = self.run_stem(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.fc(self.avgpool(x).flatten(1))


class IntermediateLayerGetter(Stem, _LayerGetter):
    """The part of a network below a segmentation head or an FPN, its stem in one step."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        names = list(self)
        whole = names[: len(self.stem_names)] == list(self.stem_names)
        if isinstance(x, Proxy) or not whole or set(self.stem_names) & set(self.return_layers):
            return super().forward(x)
        x = self.run_stem(x)
        out = OrderedDict()
        for name in names[len(self.stem_names) :]:
            x = self[name](x)
            if name in self.return_layers:
                out[self.return_layers[name]] = x
        return out


class Conv2dNormActivation(FusedSequential, _Conv2dNormActivation):
    """torchvision's convolution, BN and ReLU in a row as one operator."""


class FCNHead(FusedSequential, fcn.FCNHead):
    """The head of an FCN, its convolution, BN and ReLU as one operator."""


class DeepLabHead(FusedSequential, deeplabv3.DeepLabHead):
    """The head of a DeepLabV3, its convolution, BN and ReLU after the pyramid as one operator."""


class ASPPConv(FusedSequential, deeplabv3.ASPPConv):
    """A dilated convolution of DeepLabV3's pyramid, with BN and ReLU as one operator."""


# what becomes what
CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    resnet.BasicBlock: BasicBlock,
    resnet.Bottleneck: Bottleneck,
    resnet.ResNet: ResNet,
    _LayerGetter: IntermediateLayerGetter,
    _Conv2dNormActivation: Conv2dNormActivation,
    fcn.FCNHead: FCNHead,
    deeplabv3.DeepLabHead: DeepLabHead,
    deeplabv3.ASPPConv: ASPPConv,
}
BLOCKS = (resnet.BasicBlock, resnet.Bottleneck)
