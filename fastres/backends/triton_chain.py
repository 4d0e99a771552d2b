"""The backward launch operators of a link, y = conv(input) with act(bn(y)) after it, on a GPU.

Which kernels serve a link, the tables say: one pass for both gradients of a 1x1 convolution
("conv1x1_backward"), a kernel for each gradient ("conv_backward_data", "conv_backward_weight"), or
cuDNN on a dy that is written first. A kernel of ours forms dy as it loads it; where its config says
"stored", dy is written once here too. What no kernel of ours serves (groups, fp64) is cuDNN's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from . import triton_layers as layers
from .fakes import statistics_dtype


class _Problem(NamedTuple):
    """The convolution of a link."""

    x: Tensor
    weight: Tensor
    stride: list[int]
    padding: list[int]
    dilation: list[int]
    groups: int

    def ours(self) -> bool:
        """Whether a kernel of ours computes this product at all."""
        if self.groups != 1 or self.x.dtype == torch.float64 or self.x.numel() == 0:
            return False
        if self.x.dtype != torch.bfloat16 or self.x.is_cuda:
            return True
        # the interpreter's bf16 product is not a product
        return not layers.kernel("launch").made()

    def pointwise(self) -> bool:
        """Whether it is a 1x1 convolution of every pixel."""
        sizes = (tuple(self.weight.shape[2:]), tuple(self.stride), tuple(self.padding))
        return sizes == ((1, 1), (1, 1), (0, 0))

    def choose(self, operator: str, prologue: bool, **shape: int):
        """The table's provider and config for its gradients."""
        dtype = "tf32" if self.tf32() else self.x.dtype
        return layers.kernel("tuned").choose(
            operator, self.x.device, dtype, prologue=prologue, **shape
        )

    def tf32(self) -> bool:
        """Whether fp32 is multiplied in TF32."""
        return self.x.dtype == torch.float32 and layers.uses_tf32()


def chain_backward(
    dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx, relu, x, conv_weight,
    stride, padding, dilation, groups, pro_mean, pro_invstd, pro_weight, pro_bias,
    residual, residual_mask, residual_stride, mask_by_x, need_dx, need_dw,
):  # fmt: skip
    chain, dense = layers.kernel("chain"), layers.dense
    relu = relu or out is not None
    link = chain.Link(
        dense(dout), dense(out), dense(y), mean, invstd, weight, bias, mean_g, mean_gx
    )
    problem = _Problem(dense(x), conv_weight, stride, padding, dilation, groups)
    prologue = None if pro_mean is None else (pro_mean, pro_invstd, pro_weight, pro_bias)
    join = chain.Join(dense(residual), dense(residual_mask), residual_stride, mask_by_x)
    if prologue is None:
        found = _one_pass(link, relu, problem, join, need_dx, need_dw)
        if found is not None:
            return *found, *_no_sums(x, 0)
    return _by_direction(link, relu, problem, prologue, join, need_dx, need_dw)


def _no_sums(x: Tensor, length: int) -> list[Tensor]:
    return [x.new_zeros(length, dtype=statistics_dtype(x.dtype)) for _ in range(2)]


def _stored(link, relu: bool):
    """The link with its dy in memory."""
    dy, _ = layers.bn_backward(*link, None, None, None, None, None, (), 1, relu)
    return link._replace(
        dout=dy, out=None, y=None, mean=None, invstd=None, weight=None, bias=None, mean_g=None,
        mean_gx=None,
    )  # fmt: skip


def _one_pass(link, relu: bool, problem: _Problem, join, need_dx: bool, need_dw: bool):
    """(dx, dw) of a 1x1 convolution by one kernel, or None where the tables prefer two."""
    if not (problem.ours() and problem.pointwise() and need_dx and need_dw):
        return None
    outer, inner = problem.weight.shape[:2]
    # a program keeps all of y's channels: a row serves those up to the next power of two
    provider, config = problem.choose(
        "conv1x1_backward", False, inner=inner, outer=1 << (outer - 1).bit_length()
    )
    module = layers.kernel("reduce_backward")
    if provider != "triton" or not module.fits(outer, config):
        return None
    if config.get("stored"):
        link, relu = _stored(link, relu), False
    return module.reduce_backward(
        link, relu, problem.x, problem.weight, join, True, True, problem.tf32(), config
    )


def _by_direction(link, relu, problem, prologue, join, need_dx, need_dw):
    """(dx, dw, sum_g, sum_gx), each gradient by the provider of its own row."""
    x, fused = problem.x, prologue is not None
    data = _config(problem, "conv_backward_data", fused, need_dx)
    weights = _config(problem, "conv_backward_weight", fused, need_dw)
    library = (need_dx and data is None, need_dw and weights is None)
    stored = None
    if any(library) or any(config and config.get("stored") for config in (data, weights)):
        stored = _stored(link, relu)
    taken = x
    if fused and library[1]:
        taken = layers.bn_apply(x, *prologue, None, None, None, None, None, 1, True)
    dx, dw = x.new_empty(0), problem.weight.new_empty(0)
    if any(library):
        dx, dw = layers.conv_backward(stored.dout, taken, *problem[1:], *library)

    def arguments(config):
        formed = (stored, False) if config.get("stored") else (link, relu)
        return *formed, x, problem.weight, *problem[2:5], prologue

    sums = None
    if data is not None:
        module = layers.kernel("conv3x3_backward_data")
        dx, *sums = module.backward_data(*arguments(data), join, problem.tf32(), data)
    elif need_dx and fused:
        config = layers.config("chain_mask", x)
        dx, *sums = layers.kernel("chain_end").chain_mask(dx, x, *prologue, config)
    elif need_dx and (join.residual is not None or join.mask_by_x):
        dx = layers.kernel("chain_end").chain_join(dx, x, join, layers.config("chain_join", x))
    if weights is not None:
        module = layers.kernel("conv3x3_backward_weight")
        dw = module.backward_weight(*arguments(weights), problem.tf32(), weights)
    return dx, dw, *(sums or _no_sums(x, x.shape[1] if fused else 0))


def _config(problem: _Problem, operator: str, prologue: bool, wanted: bool):
    """The config of our kernel for one gradient, or None where it is torch's to compute."""
    if not (wanted and problem.ours()):
        return None
    outer, inner, kernel_h, kernel_w = problem.weight.shape
    provider, config = problem.choose(
        operator, prologue, inner=inner, outer=outer, taps=kernel_h * kernel_w
    )
    return config if provider == "triton" else None


def bn_max_pool(y, mean, invstd, weight, bias, kernel_size, stride, padding):
    return layers.kernel("bn_max_pool").bn_max_pool(
        layers.dense(y), mean, invstd, weight, bias, kernel_size, stride, padding,
        layers.config("bn_max_pool", y),
    )  # fmt: skip


def bn_max_pool_backward_reduce(
    dout, index, y, mean, invstd, weight, bias, kernel_size, stride, padding
):
    dense = layers.dense
    return layers.kernel("bn_max_pool_backward").bn_max_pool_backward_reduce(
        dense(dout), dense(index), dense(y), mean, invstd, weight, bias,
        kernel_size, stride, padding, layers.config("bn_max_pool_backward_reduce", y),
    )  # fmt: skip


def bn_max_pool_backward(
    dout, index, y, mean, invstd, weight, bias, mean_g, mean_gx, kernel_size, stride, padding
):
    dense = layers.dense
    return layers.kernel("bn_max_pool_backward").bn_max_pool_backward(
        dense(dout), dense(index), dense(y), mean, invstd, weight, bias, mean_g, mean_gx,
        kernel_size, stride, padding, layers.config("bn_max_pool_backward", y),
    )  # fmt: skip
