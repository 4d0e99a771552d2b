"""The input gradient of a convolution with BN and activation after it, as an implicit product."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .chain import Join, Link, joined_gradient, link_gradient, masked_input_gradient
from .gemm import GROUP as GROUP_TILES
from .gemm import grouped_tile
from .launch import dense, launch, new_activation, new_statistics, rows_of
from .split_sums import row_sums


@triton.jit
def conv3x3_backward_data_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    w_ptr, x_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, r_ptr, r_mask_ptr,
    dx_ptr, sum_g_ptr, sum_gx_ptr,
    rows, inner, outer, height, width, y_height, y_width, r_channels, r_height, r_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, RS_H: tl.constexpr, RS_W: tl.constexpr,
    RELU: tl.constexpr, MASK_BY_X: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dz[(n,h,w), c] = sum over a, b, k of dy[n, (h+P-a*D)/S, (w+P-b*D)/S, k] * weight[k, a, b, c]

    where S divides, with dy as in `link_gradient`, formed once a tap. dx is dz where relu(bn(x))
    was on, with its column sums and those of dx * xhat, where pro_mean_ptr is given; else dz +
    residual where x > 0, as in `joined_gradient`. Accumulates in fp32. Reads dout, y and, where
    given, out [M', K] once a tap (from cache but for the first), the weight [K, KERNEL_H, KERNEL_W,
    C], x and the residual; writes dx [M, C] and, with a prologue, the sums [tiles, C].
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(inner, BLOCK_N), GROUP
    )
    row0 = row_tile * BLOCK_M
    here = row0 + tl.arange(0, BLOCK_M)
    valid = here < rows
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = cols < inner
    ks = tl.arange(0, BLOCK_K)
    down = (here // width) % height + PAD_H
    across = here % width + PAD_W
    image = (here // (height * width)).to(tl.int64) * y_height
    w_tile = w_ptr + ks.to(tl.int64)[:, None] * (KERNEL_H * KERNEL_W * inner) + cols[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks_k = tl.cdiv(outer, BLOCK_K)
    for step in range(KERNEL_H * KERNEL_W * blocks_k):
        tap = step // blocks_k
        k0 = (step % blocks_k) * BLOCK_K
        h = down - (tap // KERNEL_W) * DILATION_H
        w = across - (tap % KERNEL_W) * DILATION_W
        i = h // STRIDE_H
        j = w // STRIDE_W
        # a negative h or w with a remainder rounds towards zero, so the sign is asked of h and w
        within = valid & (h >= 0) & (w >= 0) & (i < y_height) & (j < y_width)
        if STRIDE_H * STRIDE_W > 1:
            within = within & (h % STRIDE_H == 0) & (w % STRIDE_W == 0)
        channels = ks < outer - k0
        offsets = ((image + i) * y_width + j)[:, None] * outer + ks[None, :]
        dy = link_gradient(
            dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr,
            mean_gx_ptr, k0, offsets, within[:, None] & channels[None, :], k0 + ks, channels, RELU,
        )  # fmt: skip
        w_step = k0.to(tl.int64) * (KERNEL_H * KERNEL_W * inner) + tap * inner
        w_mask = channels[:, None] & inside[None, :]
        taps = tl.load(w_tile + w_step, mask=w_mask, other=0.0)
        acc = tl.dot(dy, taps, acc, input_precision=PRECISION)
    start = row0.to(tl.int64) * inner
    offsets = tl.arange(0, BLOCK_M)[:, None] * inner + cols[None, :]
    mask = valid[:, None] & inside[None, :]
    x = tl.load(x_ptr + start + offsets, mask=mask, other=0.0)
    if pro_mean_ptr is not None:
        dx, sum_g, sum_gx = masked_input_gradient(
            acc, x.to(tl.float32), x_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr,
            pro_bias_ptr, mask, cols, inside, tl.float32,
        )  # fmt: skip
        sums = row_tile.to(tl.int64) * inner + cols
        tl.store(sum_g_ptr + sums, sum_g, mask=inside)
        tl.store(sum_gx_ptr + sums, sum_gx, mask=inside)
    else:
        dx = joined_gradient(
            acc, x, r_ptr, r_mask_ptr, row0, valid, cols, inside, height, width, r_channels,
            r_height, r_width, RS_H, RS_W, MASK_BY_X, BLOCK_M,
        ).to(x.dtype)  # fmt: skip
    tl.store(dx_ptr + start + offsets, dx, mask=mask)


def backward_data(
    link: Link, relu: bool, x: Tensor, weight: Tensor, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
    prologue: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None, join: Join, tf32: bool,
    config: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dx, sum_g, sum_gx) of a convolution without groups, activations dense channels_last.

    Args:
        relu: whether dout is masked, by link.out or, where that is None, recomputed from y.
        x: of the link, not empty; the sums are [0] without a prologue.
        weight: [K, C, KH, KW], used in the dtype of x.
        prologue: mean, invstd, weight and bias [C] of the BN whose relu(bn(x)) was convolved.
        join: how dx ends where there is no prologue.
        tf32: multiply fp32 in TF32.
    """
    dx = new_activation(x, x.shape)
    rows, inner, outer = rows_of(x), x.shape[1], weight.shape[0]
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    partials: list[Tensor] | list[None] = [None, None]
    if prologue is not None:
        partials = [new_statistics(x, tiles, inner) for _ in range(2)]
    reads = link.reads(relu) | join.reads(inner)
    if prologue is None and not join.mask_by_x:
        reads["x_ptr"] = 0
    meta = {name: value for name, value in config.items() if name != "stored"}
    launch(
        conv3x3_backward_data_kernel, tiles * triton.cdiv(inner, config["BLOCK_N"]), x,
        *link, dense(weight.to(x.dtype)), x, *(prologue or [None] * 4), join.residual, join.mask,
        dx, *partials, rows, inner, outer, *x.shape[2:], *link.dout.shape[2:], *join.sizes(),
        KERNEL_H=weight.shape[2], KERNEL_W=weight.shape[3],
        STRIDE_H=stride[0], STRIDE_W=stride[1], PAD_H=padding[0], PAD_W=padding[1],
        DILATION_H=dilation[0], DILATION_W=dilation[1],
        RS_H=join.stride[0], RS_W=join.stride[1], RELU=relu, MASK_BY_X=join.mask_by_x,
        PRECISION="tf32" if tf32 else "ieee", GROUP=GROUP_TILES, **meta,
        writes=("dx_ptr", "sum_g_ptr", "sum_gx_ptr"), reads=reads,
        flops=2 * rows_of(link.dout) * weight.numel(),
    )  # fmt: skip
    if prologue is None:
        return dx, new_statistics(x, 0), new_statistics(x, 0)
    return dx, *row_sums(*partials)
