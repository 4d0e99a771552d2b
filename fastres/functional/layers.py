"""One convolution, one BN, one join: the fused operators of single layers."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from .._checks import (
    autocasting,
    check_activation,
    check_bn,
    check_conv,
    check_shortcut,
    check_training_batch,
    check_window,
    pair,
)
from ..autograd import BNAct, Conv2d, ConvBNAct, Join, MaxPool2d, PadShortcut
from .state import (
    BatchNormState,
    autocast,
    check_transforms,
    geometry_of,
    normalisation_of,
    take_measured,
    update_running,
)


def conv_bn_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNormState,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = True,
) -> Tensor:
    """relu(bn(conv(x))): [N, C_in, H, W] -> [N, C_out, H', W'], updating running statistics.

    Args:
        x: input, floating.
        weight: convolution weight [C_out, C_in / groups, KH, KW]; there is no bias.
        bn: the normalisation over C_out channels.
        stride, padding, dilation, groups: as in torch.nn.functional.conv2d.
        relu: False leaves out the ReLU.

    Raises:
        TypeError: a tensor is not floating point.
        ValueError: shapes, devices or dtypes do not fit, or training statistics would come
            from a single value per channel.

    Source: He et al. 2015, section 3.4 (BN right after each convolution, before activation).
    """
    if has_torch_function((x, weight, *bn[:2])):
        return handle_torch_function(
            conv_bn_act, (x, weight, *bn[:2]), x, weight, bn,
            stride=stride, padding=padding, dilation=dilation, groups=groups, relu=relu,
        )  # fmt: skip
    check_transforms("conv_bn_act")
    return _conv_bn(x, weight, bn, None, None, 1, stride, padding, dilation, groups, relu)


def conv_bn_add_act(
    x: Tensor,
    weight: Tensor,
    bn: BatchNormState,
    shortcut: Tensor,
    *,
    shortcut_bn: BatchNormState | None = None,
    shortcut_stride: int = 1,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    relu: bool = True,
) -> Tensor:
    """relu(bn(conv(x)) + shortcut): the end of a residual block in one step.

    Args:
        shortcut: with `shortcut_bn` the raw output of the projection, normalised here; else an
            identity of the output's shape, or (option A) a tensor with at most C_out channels
            that is read at every `shortcut_stride`-th place and padded with zero channels.
        others: see conv_bn_act, whose errors these are too.

    Source: He et al. 2015, equation 1 and section 3.3 (options A, B).
    """
    vectors = bn[:2] + (shortcut_bn[:2] if shortcut_bn is not None else ())
    if has_torch_function((x, weight, shortcut, *vectors)):
        return handle_torch_function(
            conv_bn_add_act, (x, weight, shortcut, *vectors), x, weight, bn, shortcut,
            shortcut_bn=shortcut_bn, shortcut_stride=shortcut_stride,
            stride=stride, padding=padding, dilation=dilation, groups=groups, relu=relu,
        )  # fmt: skip
    check_transforms("conv_bn_add_act")
    return _conv_bn(
        x, weight, bn, shortcut, shortcut_bn, shortcut_stride,
        stride, padding, dilation, groups, relu,
    )  # fmt: skip


def bn_act(y: Tensor, bn: BatchNormState, *, relu: bool = True) -> Tensor:
    """relu(bn(y)) for y [N, C, H, W]; errors as conv_bn_act's."""
    if has_torch_function((y, *bn[:2])):
        return handle_torch_function(bn_act, (y, *bn[:2]), y, bn, relu=relu)
    check_transforms("bn_act")
    return _bn(y, bn, None, None, 1, relu)


def bn_add_act(
    y: Tensor,
    bn: BatchNormState,
    shortcut: Tensor,
    *,
    shortcut_bn: BatchNormState | None = None,
    shortcut_stride: int = 1,
    relu: bool = True,
) -> Tensor:
    """relu(bn(y) + shortcut) for a raw convolution output y; see conv_bn_add_act."""
    vectors = bn[:2] + (shortcut_bn[:2] if shortcut_bn is not None else ())
    if has_torch_function((y, shortcut, *vectors)):
        return handle_torch_function(
            bn_add_act, (y, shortcut, *vectors), y, bn, shortcut,
            shortcut_bn=shortcut_bn, shortcut_stride=shortcut_stride, relu=relu,
        )  # fmt: skip
    check_transforms("bn_add_act")
    return _bn(y, bn, shortcut, shortcut_bn, shortcut_stride, relu)


def conv2d(
    x: Tensor,
    weight: Tensor,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution without bias, channels_last, for a `shortcut_bn` to normalise."""
    if has_torch_function((x, weight)):
        return handle_torch_function(
            conv2d, (x, weight), x, weight,
            stride=stride, padding=padding, dilation=dilation, groups=groups,
        )  # fmt: skip
    check_transforms("conv2d")
    (x,) = autocast(x)
    geometry = geometry_of(stride, padding, dilation, groups)
    check_conv(x, weight, *geometry)
    return Conv2d.apply(x, weight, geometry)


def pad_shortcut(x: Tensor, out_channels: int, stride: int = 1) -> Tensor:
    """Shortcut option A: [N, C, H, W] -> [N, out_channels, (H-1)//stride+1, (W-1)//stride+1].

    out[n, c, i, j] = x[n, c, stride*i, stride*j] for c < C, and 0 for the channels above.

    Raises:
        ValueError: out_channels < C or stride < 1.

    Source: He et al. 2015, section 3.3 option A and section 4.1.
    """
    if has_torch_function((x,)):
        return handle_torch_function(pad_shortcut, (x,), x, out_channels, stride)
    check_transforms("pad_shortcut")
    check_activation("x", x)
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    if out_channels < x.shape[1]:
        raise ValueError(
            f"out_channels must be at least x's {x.shape[1]} channels, got {out_channels}"
        )
    return PadShortcut.apply(x, out_channels, stride)


def _join(bn: BatchNormState, s_bn: BatchNormState | None, stride: int, relu: bool) -> Join:
    return Join(
        normalisation_of(bn),
        None if s_bn is None else normalisation_of(s_bn),
        stride,
        relu,
    )


def _conv_bn(x, weight, bn, shortcut, s_bn, s_stride, stride, padding, dilation, groups, relu):
    (x,) = autocast(x)
    if shortcut is not None:
        (shortcut,) = autocast(shortcut)
    geometry = geometry_of(stride, padding, dilation, groups)
    size = check_conv(x, weight, *geometry)
    check_bn("bn", bn, size[1], x.device)
    check_training_batch(bn, size)
    if shortcut is not None:
        check_shortcut(shortcut, x, size, s_bn, s_stride)
        shortcut, s_bn = _one_group(bn, shortcut, s_bn)
        shortcut = _another(shortcut, x)
    out, *statistics = ConvBNAct.apply(
        x, weight, *bn[:4], shortcut, *_shortcut_tensors(s_bn), geometry,
        _join(bn, s_bn, s_stride, relu),
    )  # fmt: skip
    _track(bn, s_bn, statistics, out)
    return out


def _bn(y, bn, shortcut, s_bn, s_stride, relu):
    check_activation("y", y)
    check_bn("bn", bn, y.shape[1], y.device)
    check_training_batch(bn, y.shape)
    if shortcut is not None:
        if autocasting(y.device.type):
            shortcut = shortcut.to(y.dtype)
        check_shortcut(shortcut, y, y.shape, s_bn, s_stride)
        shortcut, s_bn = _one_group(bn, shortcut, s_bn)
        shortcut = _another(shortcut, y)
    out, *statistics = BNAct.apply(
        y, *bn[:4], shortcut, *_shortcut_tensors(s_bn), _join(bn, s_bn, s_stride, relu)
    )
    _track(bn, s_bn, statistics, out)
    return out


def _another(shortcut: Tensor, x: Tensor) -> Tensor:
    # torch.compile refuses a Function that takes the same tensor twice
    return shortcut.view_as(shortcut) if shortcut is x else shortcut


def _one_group(bn: BatchNormState, shortcut: Tensor, s_bn: BatchNormState | None):
    """The shortcut normalised by itself where its batch is shared by other ranks than bn's."""
    measured = s_bn is not None and bn.training and s_bn.training
    if measured and s_bn.process_group is not bn.process_group:
        return _bn(shortcut, s_bn, None, None, 1, False), None
    return shortcut, s_bn


def _shortcut_tensors(s_bn: BatchNormState | None) -> tuple[Tensor | None, ...]:
    return (None,) * 4 if s_bn is None else s_bn[:4]


def _track(bn, s_bn, statistics, out: Tensor) -> None:
    following = iter(statistics)
    update_running(bn, *take_measured(following, bn), out.shape)
    if s_bn is not None:
        update_running(s_bn, *take_measured(following, s_bn), out.shape)


def max_pool2d(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
) -> Tensor:
    """Max pooling of [N, C, H, W], as torch.nn.functional.max_pool2d.

    Raises:
        ValueError: a window of more than 255 places, one that padding could fill by itself, or
            one that does not fit x.
    """
    if has_torch_function((x,)):
        return handle_torch_function(max_pool2d, (x,), x, kernel_size, stride, padding)
    check_transforms("max_pool2d")
    check_activation("x", x)
    kernel, pad = pair("kernel_size", kernel_size), pair("padding", padding)
    step = kernel if stride is None else pair("stride", stride)
    check_window(x, kernel, step, pad)
    return MaxPool2d.apply(x, kernel, step, pad)
