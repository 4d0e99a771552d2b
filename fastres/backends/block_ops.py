"""The launch operators of whole blocks: schemas and fake implementations, as in `ops`.

`z` is what enters the expanding 1x1 convolution of a bottleneck: relu(bn(y)) in y's dtype, or y
itself where no `mean` is given. Its moments stand in for the output of that convolution, which is
never in memory (docs/engine.md). A `pivot` [K] is a fixed vector near z's mean; `s`, `gram` and
`offset` (m), `covariance` are moments of z - pivot over `rows` rows.
"""

from __future__ import annotations

from collections.abc import Callable

from .fakes import channels_last, vector, weight_gradient, window_output

_BN = "Tensor? mean, Tensor? invstd, Tensor? weight, Tensor? bias"
_EXPAND = (
    f"Tensor y, {_BN}, Tensor? pivot, Tensor conv_weight, Tensor scale, Tensor shift, "
    "Tensor? shortcut, Tensor? s_pivot, Tensor? s_conv_weight, Tensor? s_scale, Tensor? s_shift, "
    "int[2] shortcut_stride, bool relu"
)
_POOL = "int[2] kernel_size, int[2] stride, int[2] padding"
_STEM = "Tensor y, Tensor mean, Tensor invstd, Tensor? weight, Tensor? bias"

BLOCK_SCHEMAS = {
    "moments": f"(Tensor y, {_BN}, Tensor pivot, int[2] stride) -> (Tensor, Tensor)",
    # offset, covariance, mean, var; invstd, scale and shift of the BN as `expand` takes it
    "moment_statistics": "(Tensor y, Tensor conv_weight, Tensor s, Tensor gram, Tensor pivot, "
    "Tensor? weight, Tensor? bias, SymInt rows, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "expand": f"({_EXPAND}) -> Tensor",
    "expand_reduce": f"({_EXPAND}, Tensor next_weight) -> (Tensor, Tensor, Tensor, Tensor)",
    "expand_backward_weight": f"(Tensor dout, Tensor? out, Tensor y, {_BN}, Tensor pivot, "
    "int[2] stride) -> (Tensor, Tensor)",
    # the sum of g * (y - mean) for the convolution's output y (offset is None if frozen), gain and
    # the gradients of the weight, as a matrix, and the BN's weight: all of it if frozen
    "moment_gradients": "(Tensor y, Tensor conv_weight, Tensor product, Tensor sum_g, "
    "Tensor? weight, Tensor mean, Tensor invstd, Tensor pivot, Tensor? offset, Tensor? shift) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    # mixing, constant, and the gradient of the weight with what the batch's statistics add to it
    "moment_batch_gradients": "(Tensor y, Tensor conv_weight, Tensor gain, Tensor dmatrix, "
    "Tensor all_g, Tensor all_gy, Tensor? weight, Tensor invstd, Tensor pivot, Tensor offset, "
    "Tensor covariance, Tensor? shift, Tensor? count, SymInt rows) -> (Tensor, Tensor, Tensor)",
    "expand_backward_data": f"(Tensor dout, Tensor? out, Tensor y, {_BN}, Tensor? pivot, "
    "Tensor gain, Tensor? mixing, Tensor? constant, int[2] stride) -> (Tensor, Tensor, Tensor)",
    "chain_backward": "(Tensor dout, Tensor? out, Tensor y, Tensor mean, Tensor invstd, "
    "Tensor? weight, Tensor? bias, Tensor? mean_g, Tensor? mean_gx, bool relu, "
    "Tensor x, Tensor conv_weight, int[2] stride, int[2] padding, int[2] dilation, int groups, "
    "Tensor? pro_mean, Tensor? pro_invstd, Tensor? pro_weight, Tensor? pro_bias, "
    "Tensor? residual, Tensor? residual_mask, int[2] residual_stride, bool mask_by_x, "
    "bool need_dx, bool need_dw) -> (Tensor, Tensor, Tensor, Tensor)",
    "bn_max_pool": f"({_STEM}, {_POOL}) -> (Tensor, Tensor)",
    "bn_max_pool_backward_reduce": f"(Tensor dout, Tensor index, {_STEM}, {_POOL}) "
    "-> (Tensor, Tensor)",
    "bn_max_pool_backward": f"(Tensor dout, Tensor index, {_STEM}, Tensor? mean_g, "
    f"Tensor? mean_gx, {_POOL}) -> Tensor",
}


def _moments(y, mean, invstd, weight, bias, pivot, stride):
    inner = y.shape[1]
    return vector(y, inner), vector(y, inner, inner)


def _moment_statistics(y, conv_weight, *_):
    outer, inner = conv_weight.shape[:2]
    return vector(y, inner), vector(y, inner, inner), *(vector(y, outer) for _ in range(5))


def _moment_gradients(y, conv_weight, *_):
    outer, inner = conv_weight.shape[:2]
    matrices = y.new_empty((outer, inner)), vector(y, outer, inner)
    return vector(y, outer), *matrices, vector(y, outer)


def _moment_batch_gradients(y, conv_weight, *_):
    outer, inner = conv_weight.shape[:2]
    return y.new_empty((inner, inner)), vector(y, inner), vector(y, outer, inner)


def _expand(y, mean, invstd, weight, bias, pivot, conv_weight, *_):
    return channels_last(y, (y.shape[0], conv_weight.shape[0], *y.shape[2:]))


def _expand_reduce(*arguments):
    y, conv_weight, next_weight = arguments[0], arguments[6], arguments[-1]
    size = (y.shape[0], conv_weight.shape[0], *y.shape[2:])
    reduced = (y.shape[0], next_weight.shape[0], *y.shape[2:])
    narrow = next_weight.shape[0]
    return channels_last(y, size), channels_last(y, reduced), vector(y, narrow), vector(y, narrow)


def _expand_backward_weight(dout, out, y, *_):
    return vector(y, y.shape[1], dout.shape[1]), vector(y, dout.shape[1])


def _expand_backward_data(dout, out, y, mean, *_):
    inner = y.shape[1]
    sums = 0 if mean is None else inner
    dz = channels_last(y, (y.shape[0], inner, *dout.shape[2:]))
    return dz, vector(y, sums), vector(y, sums)


def _chain_backward(
    dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx, relu, x, conv_weight,
    stride, padding, dilation, groups, pro_mean, pro_invstd, pro_weight, pro_bias,
    residual, residual_mask, residual_stride, mask_by_x, need_dx, need_dw,
):  # fmt: skip
    dx = channels_last(x, x.shape) if need_dx else x.new_empty(0)
    sums = 0 if pro_mean is None else x.shape[1]
    return dx, weight_gradient(conv_weight, need_dw), vector(x, sums), vector(x, sums)


def _bn_max_pool(y, mean, invstd, weight, bias, kernel_size, stride, padding):
    return window_output(y, kernel_size, stride, padding)


def _bn_max_pool_backward_reduce(dout, index, y, *_):
    return vector(y, y.shape[1]), vector(y, y.shape[1])


def _bn_max_pool_backward(dout, index, y, *_):
    return channels_last(y, y.shape)


BLOCK_FAKES: dict[str, Callable] = {
    "moments": _moments,
    "moment_statistics": _moment_statistics,
    "expand": _expand,
    "expand_reduce": _expand_reduce,
    "expand_backward_weight": _expand_backward_weight,
    "moment_gradients": _moment_gradients,
    "moment_batch_gradients": _moment_batch_gradients,
    "expand_backward_data": _expand_backward_data,
    "chain_backward": _chain_backward,
    "bn_max_pool": _bn_max_pool,
    "bn_max_pool_backward_reduce": _bn_max_pool_backward_reduce,
    "bn_max_pool_backward": _bn_max_pool_backward,
}
