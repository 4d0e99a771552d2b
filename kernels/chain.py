"""What the backward kernels of a link share: its gradient dy on the fly, and the end of its dx.

A link is y = conv(input) with act(bn(y)) after it. dy is never in memory where a kernel forms it as
it loads; it is rounded to the activations' dtype, as if it had been stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, normalise
from .bn_backward import branch_gradient
from .bn_backward_reduce import masked_gradient
from .launch import rows_of


class Link(NamedTuple):
    """What dy is formed of: activations [N, C, H, W] dense channels_last, vectors [C].

    Without a mean dout is dy, and nothing else is looked at.
    """

    dout: Tensor
    out: Tensor | None
    y: Tensor | None
    mean: Tensor | None
    invstd: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    mean_g: Tensor | None
    mean_gx: Tensor | None

    def reads(self, relu: bool) -> dict[str, int]:
        """Elements that a kernel reads of y, if that is not all: a frozen BN needs it for the mask
        only."""
        recomputed = relu and self.out is None
        return {} if self.mean_gx is not None or recomputed else {"y_ptr": 0}


class Join(NamedTuple):
    """What joins dx of a link without a prologue.

    residual [N, Cr, H', W'] is added at every stride-th pixel where !(mask <= 0), mask being of its
    size; then `mask_by_x` keeps dx only where !(x <= 0).
    """

    residual: Tensor | None
    mask: Tensor | None
    stride: Sequence[int]
    mask_by_x: bool

    def reads(self, channels: int) -> dict[str, int]:
        """Elements that a kernel reads of them beside an x of so many channels."""
        if self.residual is None:
            return {}
        taken = rows_of(self.residual) * min(channels, self.residual.shape[1])
        return {"r_ptr": taken, "r_mask_ptr": taken}

    def sizes(self) -> tuple[int, int, int]:
        """Channels, height and width of the residual; zeros without one."""
        if self.residual is None:
            return 0, 0, 0
        _, channels, height, width = self.residual.shape
        return channels, height, width


@triton.jit
def link_gradient(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    start, offsets, mask, cols, columns, RELU: tl.constexpr,
):  # fmt: skip
    """dy = weight * invstd * (g - mean_g - xhat * mean_gx) of a tile, zero outside the mask.

    g is dout where the ReLU let the value through; mean_gx_ptr None is a frozen BN, mean_ptr None a
    dout that is dy already. Computes in fp32 by the arithmetic of `bn_backward`. Reads dout, y and,
    where given, out at start + offsets.
    """
    dout = tl.load(dout_ptr + start + offsets, mask=mask, other=0.0)
    if mean_ptr is None:
        return dout
    else:
        y = tl.load(y_ptr + start + offsets, mask=mask, other=0.0).to(tl.float32)
        mean = load_channels(mean_ptr, cols, columns, tl.float32)
        scale = load_scale(invstd_ptr, weight_ptr, cols, columns, tl.float32)
        bias = load_bias(bias_ptr, cols, columns, tl.float32)
        if out_ptr is not None:
            out_ptr += start
        g = masked_gradient(
            dout.to(tl.float32), y, y_ptr, out_ptr, offsets, mask, mean, scale, bias, RELU
        )
        if mean_g_ptr is not None:
            mean_g = load_channels(mean_g_ptr, cols, columns, tl.float32)
        else:
            mean_g = tl.zeros(cols.shape, tl.float32)
        dy = branch_gradient(
            g, y, mean, scale, mean_g, invstd_ptr, mean_gx_ptr, cols, columns, tl.float32
        )
        # outside the image or past the last row the gradient is nothing, not that of a zero
        return tl.where(mask, dy, 0.0).to(dout.dtype)


@triton.jit
def residual_tile(
    r_ptr, r_mask_ptr, row0, valid, cols, columns, height, width, r_channels, r_height, r_width,
    RS_H: tl.constexpr, RS_W: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The residual gradient [BLOCK_M, BLOCK_C] that reaches rows row0 ... of x, in ACC.

    Pixel (i*RS_H, j*RS_W) of x gets pixel (i, j) of r where !(r_mask <= 0), others get nothing; so
    do channels that r does not have. x [N, height, width, C], r [N, r_height, r_width, r_channels].
    """
    inside = (columns & (cols < r_channels))[None, :]
    if RS_H * RS_W == 1:
        # a 64-bit start and 32-bit offsets take fewer registers than 64-bit offsets
        start = row0.to(tl.int64) * r_channels
        offsets = tl.arange(0, BLOCK_M)[:, None] * r_channels + cols[None, :]
        mask = valid[:, None] & inside
    else:
        rows = row0 + tl.arange(0, BLOCK_M)
        h = (rows // width) % height
        w = rows % width
        image = (rows // (height * width)).to(tl.int64)
        source = (image * r_height + h // RS_H) * r_width + w // RS_W
        start = 0
        offsets = source[:, None] * r_channels + cols[None, :]
        mask = (valid & (h % RS_H == 0) & (w % RS_W == 0))[:, None] & inside
    g = tl.load(r_ptr + start + offsets, mask=mask, other=0.0)
    if r_mask_ptr is not None:
        # compared in fp32, which holds every 16-bit value
        kept = tl.load(r_mask_ptr + start + offsets, mask=mask, other=0.0)
        if kept.dtype.primitive_bitwidth < 32:
            kept = kept.to(tl.float32)
        g = tl.where(kept <= 0, 0.0, g)
    return g


@triton.jit
def joined_gradient(dx, x, r_ptr, r_mask_ptr, row0, valid, cols, columns, height, width,
                    r_channels, r_height, r_width, RS_H: tl.constexpr, RS_W: tl.constexpr,
                    MASK_BY_X: tl.constexpr, BLOCK_M: tl.constexpr):  # fmt: skip
    """dx + residual, then nothing where x <= 0 if MASK_BY_X; in the dtype of dx."""
    if r_ptr is not None:
        dx += residual_tile(
            r_ptr, r_mask_ptr, row0, valid, cols, columns, height, width, r_channels, r_height,
            r_width, RS_H, RS_W, BLOCK_M,
        ).to(dx.dtype)  # fmt: skip
    if MASK_BY_X:
        dx = tl.where(x.to(dx.dtype) <= 0, 0.0, dx)
    return dx


@triton.jit
def masked_input_gradient(dx, x, x_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mask, cols,
                          columns, ACC: tl.constexpr):  # fmt: skip
    """(dx as stored where relu(bn(x)) was on, column sums of it and of it times xhat).

    x is a tile in ACC; the sums are of the stored, rounded values.
    """
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    z = normalise(x, mean, scale, bias).to(x_ptr.dtype.element_ty)
    dx = tl.where(z.to(ACC) <= 0, 0.0, dx).to(x_ptr.dtype.element_ty)
    g = tl.where(mask, dx.to(ACC), 0.0)
    # an infinite mean must not turn the rows outside into 0 * inf
    gx = tl.where(mask, g * (x - mean[None, :]), 0.0)
    return dx, tl.sum(g, 0), tl.sum(gx, 0) * load_channels(invstd_ptr, cols, columns, ACC)
