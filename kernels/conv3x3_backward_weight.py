"""The weight gradient of a convolution with BN and activation after it, as an implicit product."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import triton
import triton.language as tl
from torch import Tensor

from .chain import Link, link_gradient
from .gemm import normalised_input
from .launch import launch, new_statistics, rows_of
from .partials import row_programs
from .sum_rows import weight_gradient


@triton.jit
def conv3x3_backward_weight_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    x_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, dw_ptr,
    rows, inner, outer, height, width, x_height, x_width, row_programs,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dw[k, a, b, c] = sum over n, i, j of dy[n, i, j, k] * z[n, i*S - P + a*D, j*S - P + b*D, c]

    with dy as in `link_gradient` and z = x, or relu(bn(x)) where pro_mean_ptr is given, zero
    outside the image. A program takes BLOCK_N channels k, one tap (a, b), BLOCK_K channels c and
    the row tiles p, p + P, ... for P = row_programs; those of the same rows are neighbours in the
    grid. Accumulates in fp32. Reads dout, y and, where given, out [M, K] and x [M', C] once a tap
    and block (from cache but for the first); writes dw [P, K, KERNEL_H, KERNEL_W, C].
    """
    pid = tl.program_id(0)
    blocks_n = tl.cdiv(outer, BLOCK_N)
    blocks_k = tl.cdiv(inner, BLOCK_K)
    tiles = blocks_n * blocks_k * (KERNEL_H * KERNEL_W)
    program = pid // tiles
    block = pid % tiles
    tap = block % (KERNEL_H * KERNEL_W)
    block = block // (KERNEL_H * KERNEL_W)
    ns = (block // blocks_k) * BLOCK_N + tl.arange(0, BLOCK_N)
    cols = (block % blocks_k) * BLOCK_K + tl.arange(0, BLOCK_K)
    lanes = tl.arange(0, BLOCK_M)
    channels = ns < outer
    inside = cols < inner
    down = (tap // KERNEL_W) * DILATION_H - PAD_H
    across = (tap % KERNEL_W) * DILATION_W - PAD_W
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        here = row0 + lanes
        valid = here < rows
        dy = link_gradient(
            dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr,
            mean_gx_ptr, row0.to(tl.int64) * outer, lanes[:, None] * outer + ns[None, :],
            valid[:, None] & channels[None, :], ns, channels, RELU,
        )  # fmt: skip
        h = ((here // width) % height) * STRIDE_H + down
        w = (here % width) * STRIDE_W + across
        image = (here // (height * width)).to(tl.int64)
        within = valid & (h >= 0) & (h < x_height) & (w >= 0) & (w < x_width)
        source = (image * x_height + h) * x_width + w
        keep = within[:, None] & inside[None, :]
        z = tl.load(x_ptr + source[:, None] * inner + cols[None, :], mask=keep, other=0.0)
        if pro_mean_ptr is not None:
            z = normalised_input(
                z, keep, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, cols, inside
            )
        acc = tl.dot(tl.trans(dy), z, acc, input_precision=PRECISION)
    size = KERNEL_H * KERNEL_W * inner
    base = dw_ptr + program.to(tl.int64) * outer * size + tap * inner
    offsets = ns.to(tl.int64)[:, None] * size + cols[None, :]
    tl.store(base + offsets, acc, mask=channels[:, None] & inside[None, :])


@cache
def _met(extent: int, steps: int, kernel: int, stride: int, padding: int, dilation: int) -> int:
    """How many of `extent` pixels in a row the windows of a convolution meet."""
    met = {i * stride - padding + a * dilation for i in range(steps) for a in range(kernel)}
    return len(met.intersection(range(extent)))


def backward_weight(
    link: Link, relu: bool, x: Tensor, weight: Tensor, stride: Sequence[int],
    padding: Sequence[int], dilation: Sequence[int],
    prologue: tuple[Tensor, Tensor, Tensor | None, Tensor | None] | None, tf32: bool,
    config: dict[str, int],
) -> Tensor:  # fmt: skip
    """dw, like the weight, of a convolution without groups, activations dense channels_last.

    Args:
        relu: whether dout is masked, by link.out or, where that is None, recomputed from y.
        weight: [K, C, KH, KW]; of it only sizes, strides and dtype matter.
        prologue: mean, invstd, weight and bias [C] of the BN whose relu(bn(x)) was convolved.
        tf32: multiply fp32 in TF32.
        config: blocks, and `programs`, the size of the grid aimed at.
    """
    outer, inner, kernel_h, kernel_w = weight.shape
    rows = rows_of(link.dout)
    if rows == 0 or weight.numel() == 0:
        return weight_gradient(None, weight)
    tiles = triton.cdiv(outer, config["BLOCK_N"]) * triton.cdiv(inner, config["BLOCK_K"])
    tiles *= kernel_h * kernel_w
    programs = row_programs(rows, config["BLOCK_M"], tiles, config["programs"])
    partials = new_statistics(x, programs, weight.numel())
    images, _, height, width = link.dout.shape
    met = (
        _met(x.shape[2], height, kernel_h, stride[0], padding[0], dilation[0]),
        _met(x.shape[3], width, kernel_w, stride[1], padding[1], dilation[1]),
    )
    meta = {name: value for name, value in config.items() if name not in ("programs", "stored")}
    launch(
        conv3x3_backward_weight_kernel, programs * tiles, x,
        *link, x, *(prologue or [None] * 4), partials,
        rows, inner, outer, height, width, *x.shape[2:], programs,
        KERNEL_H=kernel_h, KERNEL_W=kernel_w, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1], DILATION_H=dilation[0], DILATION_W=dilation[1],
        RELU=relu, PRECISION="tf32" if tf32 else "ieee", **meta,
        writes=("dw_ptr",), reads=link.reads(relu) | {"x_ptr": images * inner * met[0] * met[1]},
        flops=2 * rows * weight.numel(),
    )  # fmt: skip
    return weight_gradient(partials, weight)
