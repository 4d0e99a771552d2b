"""The stem of the ImageNet networks as one step."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._checks import check_bn, check_conv, check_training_batch, check_window_of, pair
from ..autograd import ConvBNMaxPool, Window
from .state import (
    BatchNormState,
    autocast,
    check_transforms,
    geometry_of,
    normalisation_of,
    take_measured,
    update_running,
)


def conv_bn_max_pool(
    x: Tensor,
    weight: Tensor,
    bn: BatchNormState,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    pool_kernel: int | tuple[int, int] = 3,
    pool_stride: int | tuple[int, int] = 2,
    pool_padding: int | tuple[int, int] = 1,
) -> Tensor:
    """max_pool2d(relu(bn(conv(x)))), updating running statistics.

    Args:
        x, weight, bn, stride, padding, dilation, groups: as in conv_bn_act.
        pool_kernel, pool_stride, pool_padding: as in torch.nn.functional.max_pool2d.

    Raises:
        TypeError, ValueError: as conv_bn_act and max_pool2d.

    Source: He et al. 2015, table 1 (conv1 and the pooling of conv2_x).
    """
    overridable = (x, weight, *bn[:2])
    if has_torch_function(overridable):
        return handle_torch_function(
            conv_bn_max_pool, overridable, x, weight, bn,
            stride=stride, padding=padding, dilation=dilation, groups=groups,
            pool_kernel=pool_kernel, pool_stride=pool_stride, pool_padding=pool_padding,
        )  # fmt: skip
    check_transforms("conv_bn_max_pool")
    (x,) = autocast(x)
    geometry = geometry_of(stride, padding, dilation, groups)
    size = check_conv(x, weight, *geometry)
    check_bn("bn", bn, size[1], x.device)
    check_training_batch(bn, size)
    window = Window(
        pair("pool_kernel", pool_kernel),
        pair("pool_stride", pool_stride),
        pair("pool_padding", pool_padding),
    )
    check_window_of(size, *window)
    out, *statistics = ConvBNMaxPool.apply(
        x, weight, *bn[:4], geometry, normalisation_of(bn), window
    )
    update_running(bn, *take_measured(iter(statistics), bn), size)
    return out
