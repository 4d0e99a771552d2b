"""ResNet v1 with fused convolution + BN + ReLU and residual add + ReLU, for training."""

from .backends import backend
from .functional import (
    BatchNormState,
    bn_act,
    bn_add_act,
    conv_bn_act,
    conv_bn_add_act,
    pad_shortcut,
)
from .models import *  # noqa: F403
from .models import __all__ as _models
from .version import __version__

__all__ = [
    "BatchNormState",
    "__version__",
    "backend",
    "bn_act",
    "bn_add_act",
    "conv_bn_act",
    "conv_bn_add_act",
    "pad_shortcut",
    *_models,
]
