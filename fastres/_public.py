"""The public names, which `fastres` has at once or, as a command, when one is asked for."""

from .backends import backend
from .explain import explain
from .functional import (
    BatchNormState,
    ConvBN,
    ResidualBlock,
    bn_act,
    bn_add_act,
    conv_bn_act,
    conv_bn_add_act,
    conv_bn_max_pool,
    pad_shortcut,
    residual_blocks,
)
from .inference import optimize
from .interop import fuse, unfuse
from .models import *  # noqa: F403
from .models import __all__ as _models
from .version import __version__

__all__ = [
    "BatchNormState",
    "ConvBN",
    "ResidualBlock",
    "__version__",
    "backend",
    "bn_act",
    "bn_add_act",
    "conv_bn_act",
    "conv_bn_add_act",
    "conv_bn_max_pool",
    "explain",
    "fuse",
    "optimize",
    "pad_shortcut",
    "residual_blocks",
    "unfuse",
    *_models,
]
