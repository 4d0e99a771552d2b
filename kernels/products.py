"""The matrix products of the convolution kernels: a tile of rows times one of output channels."""

from __future__ import annotations

import triton
import triton.language as tl

from .arithmetic import strided_rows
from .gemm import normalised_input


@triton.jit
def pointwise_product(
    x_ptr, w_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
    row0, cols, rows, inner, outer, height, width, x_height, x_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc[m, n] = sum_k z[row(m), k] * w[n, k] for BLOCK_M rows from row0 on and channels `cols`.

    z is x [M', K], or relu(bn(x)) where pro_mean_ptr is given; row(m) is m, or with a stride pixel
    (i*STRIDE_H, j*STRIDE_W) for m = (image, i, j) of [N, height, width]. Accumulates in fp32.
    """
    lanes = tl.arange(0, BLOCK_M)
    valid = (row0 + lanes < rows)[:, None]
    ks = tl.arange(0, BLOCK_K)
    if STRIDE_H * STRIDE_W == 1:
        x_tile = x_ptr + row0.to(tl.int64) * inner + (lanes[:, None] * inner + ks[None, :])
    else:
        source = strided_rows(row0 + lanes, height, width, x_height, x_width, STRIDE_H, STRIDE_W)
        x_tile = x_ptr + source[:, None] * inner + ks[None, :]
    w_tile = w_ptr + cols.to(tl.int64)[None, :] * inner + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(inner, BLOCK_K)):
        k0 = step * BLOCK_K
        left = inner - k0
        x_mask = valid & (ks < left)[None, :]
        x = tl.load(x_tile + k0, mask=x_mask, other=0.0)
        w = tl.load(w_tile + k0, mask=(ks < left)[:, None] & (cols < outer)[None, :], other=0.0)
        if pro_mean_ptr is not None:
            x = normalised_input(
                x, x_mask, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
                k0 + ks, ks < left,
            )  # fmt: skip
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def implicit_product(
    x_ptr, w_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
    row0, cols, rows, inner, outer, height, width, x_height, x_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """acc[(b,i,j), n] = sum over a, c, k of z[b, i*S - P + a*D, j*S - P + c*D, k] * w[n, a, c, k]

    for BLOCK_M rows (b, i, j) from row0 on and channels `cols`. z is x, or relu(bn(x)) where
    pro_mean_ptr is given; outside the image it is zero. One loop goes over taps (a, c) and blocks
    of input channels k, so that x is read once a tap, from cache but for the first. Accumulates in
    fp32.
    """
    here = row0 + tl.arange(0, BLOCK_M)
    ks = tl.arange(0, BLOCK_K)
    image = here // (height * width)
    # the pixel under tap (0, 0), which may lie outside the image
    top = ((here // width) % height) * STRIDE_H - PAD_H
    left = (here % width) * STRIDE_W - PAD_W
    origin = (image.to(tl.int64) * x_height + top) * x_width + left
    x_tile = x_ptr + origin[:, None] * inner + ks[None, :]
    w_tile = w_ptr + cols.to(tl.int64)[None, :] * (KERNEL_H * KERNEL_W * inner) + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    blocks_k = tl.cdiv(inner, BLOCK_K)
    for step in range(KERNEL_H * KERNEL_W * blocks_k):
        tap = step // blocks_k
        k0 = (step % blocks_k) * BLOCK_K
        down = (tap // KERNEL_W) * DILATION_H
        across = (tap % KERNEL_W) * DILATION_W
        h = top + down
        w = left + across
        within = (here < rows) & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        columns = ks < inner - k0
        x_mask = within[:, None] & columns[None, :]
        x = tl.load(x_tile + ((down * x_width + across) * inner + k0), mask=x_mask, other=0.0)
        w_mask = columns[:, None] & (cols < outer)[None, :]
        taps = tl.load(w_tile + (tap * inner + k0), mask=w_mask, other=0.0)
        if pro_mean_ptr is not None:
            x = normalised_input(
                x, x_mask, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr,
                k0 + ks, columns,
            )  # fmt: skip
        acc = tl.dot(x, taps, acc, input_precision=PRECISION)
    return acc
