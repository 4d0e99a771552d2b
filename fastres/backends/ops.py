"""The launch operators: schemas and fake implementations of `torch.ops.fastres.*`.

An operator is one launch of a backend. None of them mutates its arguments or is differentiable by
itself: `fastres.autograd` supplies the gradients, `fastres.functional` the running statistics.
Activations come in with any strides and go out as dense channels_last; statistic vectors are
fp32, or fp64 beside fp64 activations. A convolution's weight may be kept in another dtype than its
activations, whose dtype it is then used in; the weight's gradient has the weight's dtype. Where an
output is not asked for it is an empty `[0]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .block_ops import BLOCK_FAKES, BLOCK_SCHEMAS
from .fakes import channels_last, conv_output_size, vector, weight_gradient, window_output

_CONV = "int[2] stride, int[2] padding, int[2] dilation, int groups"
_BACKWARD = (
    "Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, "
    "Tensor? mean_g, Tensor? mean_gx, Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, "
    "Tensor? s_weight, Tensor? mean_gx_s, SymInt[] shortcut_size, int shortcut_stride, bool relu"
)

SCHEMAS = {
    "conv_stats": f"(Tensor x, Tensor weight, {_CONV}, Tensor? pro_mean, Tensor? pro_invstd, "
    "Tensor? pro_weight, Tensor? pro_bias, bool stats) -> (Tensor, Tensor, Tensor)",
    "conv_bias_act": "(Tensor x, Tensor weight, Tensor? bias, Tensor? shortcut, "
    f"{_CONV}, bool relu) -> Tensor",
    "bn_stats": "(Tensor y) -> (Tensor, Tensor)",
    "bn_apply": "(Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias, "
    "Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, Tensor? s_weight, Tensor? s_bias, "
    "int shortcut_stride, bool relu) -> Tensor",
    "bn_backward_reduce": "(Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, "
    "Tensor? weight, Tensor? bias, Tensor? shortcut, Tensor? s_mean, Tensor? s_invstd, bool relu) "
    "-> (Tensor, Tensor, Tensor)",
    "bn_backward": f"({_BACKWARD}) -> (Tensor, Tensor)",
    "conv_backward": f"(Tensor dy, Tensor x, Tensor weight, {_CONV}, bool need_dx, bool need_dw) "
    "-> (Tensor, Tensor)",
    "conv_bn_backward": f"({_BACKWARD}, Tensor x, Tensor conv_weight, {_CONV}, "
    "bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor)",
    "max_pool": "(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding) -> (Tensor, Tensor)",
    "max_pool_backward": "(Tensor dout, Tensor index, SymInt[] size, int[2] kernel_size, "
    "int[2] stride, int[2] padding) -> Tensor",
    "pad_shortcut": "(Tensor x, int out_channels, int stride) -> Tensor",
    "pad_shortcut_backward": "(Tensor dout, SymInt[] size, int stride) -> Tensor",
    **BLOCK_SCHEMAS,
}


def _conv_stats(x, weight, stride, padding, dilation, groups, pm, pi, pw, pb, stats):
    y = channels_last(x, conv_output_size(x, weight, stride, padding, dilation))
    length = weight.shape[0] if stats else 0
    return y, vector(x, length), vector(x, length)


def _conv_bias_act(x, weight, bias, shortcut, stride, padding, dilation, groups, relu):
    return channels_last(x, conv_output_size(x, weight, stride, padding, dilation))


def _bn_stats(y):
    return vector(y, y.shape[1]), vector(y, y.shape[1])


def _bn_apply(y, *_):
    return channels_last(y, y.shape)


def _bn_backward_reduce(dout, out, y, mean, invstd, weight, bias, shortcut, s_mean, s_invstd, relu):
    channels = y.shape[1]
    return (
        vector(y, channels),
        vector(y, channels),
        vector(y, 0 if s_mean is None else channels),
    )


def _shortcut_gradient(y: Tensor, size: Sequence[int]) -> Tensor:
    return channels_last(y, size) if len(size) else y.new_empty(0)


def _bn_backward(dout, out, y, *rest):
    shortcut_size = rest[-3]
    return channels_last(y, y.shape), _shortcut_gradient(y, shortcut_size)


def _conv_backward(dy, x, weight, stride, padding, dilation, groups, need_dx, need_dw):
    dx = channels_last(x, x.shape) if need_dx else x.new_empty(0)
    return dx, weight_gradient(weight, need_dw)


def _conv_bn_backward(dout, out, y, *rest):
    shortcut_size, (x, weight), (need_dx, need_dw) = rest[11], rest[14:16], rest[-2:]
    dx = channels_last(x, x.shape) if need_dx else x.new_empty(0)
    return dx, weight_gradient(weight, need_dw), _shortcut_gradient(y, shortcut_size)


def _max_pool(x, kernel_size, stride, padding):
    return window_output(x, kernel_size, stride, padding)


def _max_pool_backward(dout, index, size, kernel_size, stride, padding):
    return channels_last(dout, size)


def _pad_shortcut(x, out_channels, stride):
    spatial = [(extent - 1) // stride + 1 for extent in x.shape[2:]]
    return channels_last(x, [x.shape[0], out_channels, *spatial])


def _pad_shortcut_backward(dout, size, stride):
    return channels_last(dout, size)


FAKES: dict[str, Callable] = {
    "conv_stats": _conv_stats,
    "conv_bias_act": _conv_bias_act,
    "bn_stats": _bn_stats,
    "bn_apply": _bn_apply,
    "bn_backward_reduce": _bn_backward_reduce,
    "bn_backward": _bn_backward,
    "conv_backward": _conv_backward,
    "conv_bn_backward": _conv_bn_backward,
    "max_pool": _max_pool,
    "max_pool_backward": _max_pool_backward,
    "pad_shortcut": _pad_shortcut,
    "pad_shortcut_backward": _pad_shortcut_backward,
    **BLOCK_FAKES,
}
