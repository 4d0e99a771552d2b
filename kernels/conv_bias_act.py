"""A convolution of any kernel size with bias, shortcut and ReLU in its epilogue, for inference."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, relu, tile_offsets
from .gemm import GROUP as GROUP_TILES
from .gemm import grouped_tile
from .launch import dense, launch, new_convolved, rows_of
from .products import implicit_product, pointwise_product


@triton.jit
def conv_bias_act_kernel(
    x_ptr, w_ptr, bias_ptr, s_ptr, out_ptr, rows, inner, outer, height, width, x_height, x_width,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PAD_H: tl.constexpr, PAD_W: tl.constexpr,
    DILATION_H: tl.constexpr, DILATION_W: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out = relu(y + bias + shortcut), y = convolution of x with w; each of the three may be absent

    Accumulates in fp32 and rounds once. Reads x [M', K], w [N, KERNEL_H, KERNEL_W, K], bias [N] and
    the shortcut s [M, N]; writes out [M, N].
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N), GROUP
    )
    row0 = row_tile * BLOCK_M
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if KERNEL_H * KERNEL_W == 1 and PAD_H + PAD_W == 0:
        acc = pointwise_product(
            x_ptr, w_ptr, None, None, None, None,
            row0, cols, rows, inner, outer, height, width, x_height, x_width,
            STRIDE_H, STRIDE_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    else:
        acc = implicit_product(
            x_ptr, w_ptr, None, None, None, None,
            row0, cols, rows, inner, outer, height, width, x_height, x_width,
            KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
            PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    inside = cols < outer
    keep = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None] & inside[None, :]
    offsets = tile_offsets(row0, cols, outer, BLOCK_M)
    value = acc + load_bias(bias_ptr, cols, inside, tl.float32)[None, :]
    if s_ptr is not None:
        value += tl.load(s_ptr + offsets, mask=keep, other=0.0).to(tl.float32)
    if RELU:
        value = relu(value)
    tl.store(out_ptr + offsets, value.to(out_ptr.dtype.element_ty), mask=keep)


def conv_bias_act(
    x: Tensor, weight: Tensor, bias: Tensor | None, shortcut: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], relu: bool, tf32: bool,
    config: dict[str, int],
) -> Tensor:  # fmt: skip
    """relu(convolution of x + bias + shortcut) of a dense channels_last x, without groups.

    Args:
        weight: [C_out, C_in, KH, KW].
        bias: [C_out], or None for zeros.
        shortcut: dense channels_last, of the output's sizes, or None.
        stride, padding, dilation: of height and width.
        relu: whether it ends with a ReLU.
        tf32: multiply fp32 in TF32.
    """
    _, inner, x_height, x_width = x.shape
    outer, _, kernel_h, kernel_w = weight.shape
    out = new_convolved(x, weight, stride, padding, dilation)
    height, width = out.shape[2:]
    if out.numel() == 0:
        return out
    rows = rows_of(out)
    pointwise = kernel_h * kernel_w == 1 and not any(padding)
    launch(
        conv_bias_act_kernel,
        triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(outer, config["BLOCK_N"]), out,
        x, dense(weight), bias, shortcut, out,
        rows, inner, outer, height, width, x_height, x_width,
        KERNEL_H=kernel_h, KERNEL_W=kernel_w, STRIDE_H=stride[0], STRIDE_W=stride[1],
        PAD_H=padding[0], PAD_W=padding[1], DILATION_H=dilation[0], DILATION_W=dilation[1],
        RELU=relu, PRECISION="tf32" if tf32 else "ieee", GROUP=GROUP_TILES, **config,
        writes=("out_ptr",), reads={"x_ptr": rows * inner} if pointwise else None,
        flops=2 * rows * outer * inner * kernel_h * kernel_w,
    )  # fmt: skip
    return out
