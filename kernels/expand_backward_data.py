"""The gradient of what enters a wide 1x1 convolution, without that convolution's output."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, normalise
from .gemm import GROUP as GROUP_TILES
from .gemm import grouped_tile, normalised_input
from .launch import launch, new_activation, new_statistics, rows_of
from .operands import PART, centred, halves, masked, tile_pointers
from .split_sums import row_sums


@triton.jit
def store_masked(
    acc, y_ptr, dz_ptr, sum_g_ptr, sum_gx_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
    row_tile, col0, rows, channels, height, width, y_height, y_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
):  # fmt: skip
    """Write a tile of dz from column col0 on; where mean_ptr is given, mask it first by bn(y) > 0
    and write the tile's sums of dz and of dz * xhat, both of dz as it is stored."""
    columns: tl.constexpr = acc.shape[1]
    if columns > PART:
        left, right = halves(acc)
        store_masked(
            left, y_ptr, dz_ptr, sum_g_ptr, sum_gx_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
            row_tile, col0, rows, channels, height, width, y_height, y_width, STRIDE_H, STRIDE_W,
        )  # fmt: skip
        store_masked(
            right, y_ptr, dz_ptr, sum_g_ptr, sum_gx_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
            row_tile, col0 + columns // 2, rows, channels, height, width, y_height, y_width,
            STRIDE_H, STRIDE_W,
        )  # fmt: skip
    else:
        block_m: tl.constexpr = acc.shape[0]
        row0 = row_tile * block_m
        cols = col0 + tl.arange(0, columns)
        inside = cols < channels
        keep = (row0 + tl.arange(0, block_m) < rows)[:, None] & inside[None, :]
        dz_tile = tile_pointers(
            dz_ptr, row0, cols, channels, height, width, height, width, 1, 1, block_m
        )
        if mean_ptr is None:
            tl.store(dz_tile, acc.to(dz_ptr.dtype.element_ty), mask=keep)
        else:
            y_tile = tile_pointers(
                y_ptr, row0, cols, channels, height, width, y_height, y_width,
                STRIDE_H, STRIDE_W, block_m,
            )  # fmt: skip
            y = tl.load(y_tile, mask=keep, other=0.0).to(tl.float32)
            mean = load_channels(mean_ptr, cols, inside, tl.float32)
            scale = load_scale(invstd_ptr, weight_ptr, cols, inside, tl.float32)
            bias = load_bias(bias_ptr, cols, inside, tl.float32)
            # decided on z as it is rounded, which is what the forward went on with
            z = normalise(y, mean, scale, bias).to(y_ptr.dtype.element_ty)
            dz = masked(acc, z).to(dz_ptr.dtype.element_ty)
            tl.store(dz_tile, dz, mask=keep)
            g = tl.where(keep, dz.to(tl.float32), 0.0)
            out = row_tile.to(tl.int64) * channels + cols
            tl.store(sum_g_ptr + out, tl.sum(g, 0), mask=inside)
            invstd = load_channels(invstd_ptr, cols, inside, tl.float32)
            # an infinite mean must not turn the rows outside into 0 * inf
            gx = tl.where(keep, g * (y - mean[None, :]), 0.0)
            tl.store(sum_gx_ptr + out, tl.sum(gx, 0) * invstd, mask=inside)


@triton.jit
def expand_backward_data_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, pivot_ptr,
    gain_ptr, mixing_ptr, constant_ptr, dz_ptr, sum_g_ptr, sum_gx_ptr,
    rows, inner, outer, height, width, y_height, y_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """dz = g gain + (z - pivot) mixing + constant, zero where mean_ptr is given and z's ReLU was
    off

    g = dout, where out_ptr is given only where !(out <= 0). z = y or relu(bn(y)), at a stride;
    mixing_ptr None leaves out what follows the first product. Accumulates in fp32. Reads dout and
    out [M, N] and y [M', K] once a column tile (from cache but for the first), gain [N, K] and
    mixing [K, K]; writes dz [M, K] and, where mean_ptr is given, per row tile its column sums and
    those of dz * xhat. BLOCK_N columns of dz, BLOCK_K terms of the sums at a time.
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(inner, BLOCK_N), GROUP
    )
    row0 = row_tile * BLOCK_M
    valid = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None]
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = (cols < inner)[None, :]
    terms = tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    g_inside = tl.arange(0, BLOCK_M)[:, None] * outer + terms[None, :]
    g_first = row0.to(tl.int64) * outer
    gain_tile = gain_ptr + terms[:, None] * inner + cols[None, :]
    for step in range(tl.cdiv(outer, BLOCK_K)):
        k0 = step * BLOCK_K
        left = terms < outer - k0
        keep = valid & left[None, :]
        g = tl.load(dout_ptr + g_first + k0 + g_inside, mask=keep, other=0.0)
        if out_ptr is not None:
            out = tl.load(out_ptr + g_first + k0 + g_inside, mask=keep, other=0.0)
            g = masked(g, out)
        gain = tl.load(gain_tile + k0.to(tl.int64) * inner, mask=left[:, None] & columns, other=0.0)
        acc = tl.dot(g, gain, acc, input_precision=PRECISION)
    if mixing_ptr is not None:
        y_tile = tile_pointers(
            y_ptr, row0, terms, inner, height, width, y_height, y_width,
            STRIDE_H, STRIDE_W, BLOCK_M,
        )  # fmt: skip
        mixing_tile = mixing_ptr + terms[:, None] * inner + cols[None, :]
        for step in range(tl.cdiv(inner, BLOCK_K)):
            k0 = step * BLOCK_K
            left = terms < inner - k0
            keep = valid & left[None, :]
            z = tl.load(y_tile + k0, mask=keep, other=0.0)
            if mean_ptr is not None:
                z = normalised_input(
                    z, keep, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, k0 + terms, left
                )
            if pivot_ptr is not None:
                pivot = load_channels(pivot_ptr, k0 + terms, left, tl.float32)
                z = centred(z, keep, pivot).to(z.dtype)
            mixing = tl.load(
                mixing_tile + k0.to(tl.int64) * inner, mask=left[:, None] & columns, other=0.0
            )
            acc = tl.dot(z, mixing, acc, input_precision=PRECISION)
        acc += load_channels(constant_ptr, cols, cols < inner, tl.float32)[None, :]
    store_masked(
        acc, y_ptr, dz_ptr, sum_g_ptr, sum_gx_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr,
        row_tile, col_tile * BLOCK_N, rows, inner, height, width, y_height, y_width,
        STRIDE_H, STRIDE_W,
    )  # fmt: skip


def expand_backward_data(
    dout: Tensor, out: Tensor | None, y: Tensor, mean: Tensor | None, invstd: Tensor | None,
    weight: Tensor | None, bias: Tensor | None, pivot: Tensor | None, gain: Tensor,
    mixing: Tensor | None, constant: Tensor | None, stride: Sequence[int], tf32: bool,
    config: dict[str, int],
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(dz, sum of dz [K], sum of dz * xhat [K]) of dense activations.

    Args:
        dout: gradient of the block's output [B, N, H, W]; g is dout where `out` is given only where
            out let it through.
        y: [B, K, H', W'], read at a stride.
        mean: with invstd, weight and bias [K] the BN of z = relu(bn(y)); dz is then masked by z's
            ReLU. None: z is y and both sums are empty [0].
        pivot: [K] in fp32 or None for zero.
        gain: [N, K] in the activations' dtype, contiguous.
        mixing: [K, K] likewise, with `constant` [K] in fp32; both None: dz = g gain.
        tf32: multiply fp32 in TF32.
    """
    inner, y_height, y_width = y.shape[1:]
    images, outer, height, width = dout.shape
    dz = new_activation(y, (images, inner, height, width))
    sums = 0 if mean is None else inner
    if dz.numel() == 0:
        return dz, new_statistics(y, sums).zero_(), new_statistics(y, sums).zero_()
    rows_of(y)
    rows = rows_of(dout)
    if mixing is None:
        pivot = None
    read = 0 if mixing is None and mean is None else rows * inner
    terms = outer if mixing is None else outer + inner
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    partials: list[Tensor | None] = [None, None]
    if mean is not None:
        partials = [new_statistics(y, tiles, inner) for _ in range(2)]
    launch(
        expand_backward_data_kernel, tiles * triton.cdiv(inner, config["BLOCK_N"]), y,
        dout, out, y, mean, invstd, weight, bias, pivot, gain, mixing, constant, dz, *partials,
        rows, inner, outer, height, width, y_height, y_width,
        STRIDE_H=stride[0], STRIDE_W=stride[1], PRECISION="tf32" if tf32 else "ieee",
        GROUP=GROUP_TILES, **config,
        writes=("dz_ptr", "sum_g_ptr", "sum_gx_ptr"), reads={"y_ptr": read},
        flops=2 * rows * terms * inner,
    )  # fmt: skip
    if mean is None:
        return dz, new_statistics(y, 0), new_statistics(y, 0)
    return dz, *row_sums(*partials)
