"""A bottleneck's end, and the next one's first 1x1 convolution on the tile still on the chip."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_channels, tile_offsets
from .expand import NONE, PROJECTION, Block, convolve_tile, expand_tiles, join
from .gemm import new_partials, normalised_input, store_output
from .launch import dense, launch, new_activation
from .operands import centred, tile_pointers
from .partials import empty_statistics, merge_statistics


@triton.jit
def load_rows(
    y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr,
    row0, rows, inner, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """All columns of z - pivot of the rows from row0 on, in the dtype of y."""
    ks = tl.arange(0, BLOCK_K)
    left = ks < inner
    keep = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None] & left[None, :]
    z = tl.load(y_ptr + tile_offsets(row0, ks, inner, BLOCK_M), mask=keep, other=0.0)
    if pro_mean_ptr is not None:
        z = normalised_input(
            z, keep, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, ks, left
        )
    if pivot_ptr is not None:
        z = centred(z, keep, load_channels(pivot_ptr, ks, left, tl.float32)).to(z.dtype)
    return z


@triton.jit
def expand_chunk(
    z, w_ptr, scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
    row0, cols, rows, inner, outer, s_channels, height, width, s_height, s_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KIND: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Write columns `cols` of out for the rows of z; they are also what is returned, zero outside
    the matrix."""
    valid = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None]
    columns = cols < outer
    if KIND == PROJECTION:
        s = convolve_tile(
            s_ptr, None, None, None, None, s_pivot_ptr, s_w_ptr,
            row0, cols, rows, s_channels, outer, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif KIND != NONE:
        s_tile = tile_pointers(
            s_ptr, row0, cols, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, BLOCK_M,
        )  # fmt: skip
        s = tl.load(s_tile, mask=valid & (cols < s_channels)[None, :], other=0.0)
    else:
        s = None
    ks = tl.arange(0, BLOCK_K)
    w_tile = w_ptr + cols.to(tl.int64)[None, :] * inner + ks[:, None]
    w = tl.load(w_tile, mask=(ks < inner)[:, None] & columns[None, :], other=0.0)
    product = tl.dot(z, w, input_precision=PRECISION)
    value = join(
        product, s, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, cols, outer, KIND, RELU
    )
    # an infinity times the zeros outside the next weight must not reach its sum
    out = tl.where(columns[None, :], value, 0.0).to(out_ptr.dtype.element_ty)
    out_tile = out_ptr + tile_offsets(row0, cols, outer, BLOCK_M)
    tl.store(out_tile, out, mask=valid & columns[None, :])
    return out


@triton.jit
def expand_rows_kernel(
    y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr, w_ptr,
    scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
    rows, inner, outer, s_channels, height, width, s_height, s_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KIND: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out as in expand_kernel, by programs that have all columns of their rows

    z, K <= BLOCK_K, is normalised once and stays on the chip; the shortcut of the columns to come
    is on its way while a chunk of BLOCK_N is made. Accumulates in fp32. Reads and writes what
    expand_kernel does.
    """
    row0 = tl.program_id(0) * BLOCK_M
    z = load_rows(
        y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr,
        row0, rows, inner, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    for chunk in range(tl.cdiv(outer, BLOCK_N)):
        expand_chunk(
            z, w_ptr, scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr,
            out_ptr, row0, chunk * BLOCK_N + tl.arange(0, BLOCK_N), rows, inner, outer, s_channels,
            height, width, s_height, s_width, STRIDE_H, STRIDE_W, KIND, RELU, PRECISION,
            BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip


@triton.jit
def expand_reduce_kernel(
    y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr, w_ptr,
    scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
    next_ptr, reduced_ptr, count_ptr, mean_ptr, m2_ptr,
    rows, inner, outer, s_channels, height, width, s_height, s_width, narrow,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KIND: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_R: tl.constexpr,
):  # fmt: skip
    """out as in expand_rows_kernel, reduced[m, r] = sum_n out[m, n] * next[r, n]

    Each chunk of out, rounded to its dtype, is multiplied before it leaves the chip. Accumulates in
    fp32. Reads what expand_kernel does and next [R, N], R <= BLOCK_R; writes out [M, N], reduced
    [M, R] and per row tile the count, mean and M2 of its columns.
    """
    row_tile = tl.program_id(0)
    row0 = row_tile * BLOCK_M
    z = load_rows(
        y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr,
        row0, rows, inner, BLOCK_M, BLOCK_K,
    )  # fmt: skip
    narrow_cols = tl.arange(0, BLOCK_R)
    reduced = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
    for chunk in range(tl.cdiv(outer, BLOCK_N)):
        cols = chunk * BLOCK_N + tl.arange(0, BLOCK_N)
        next_tile = next_ptr + narrow_cols.to(tl.int64)[None, :] * outer + cols[:, None]
        next_mask = (cols < outer)[:, None] & (narrow_cols < narrow)[None, :]
        following = tl.load(next_tile, mask=next_mask, other=0.0)
        out = expand_chunk(
            z, w_ptr, scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr,
            out_ptr, row0, cols, rows, inner, outer, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, KIND, RELU, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
        reduced = tl.dot(out, following, reduced, input_precision=PRECISION)
    store_output(
        reduced, reduced_ptr, count_ptr, mean_ptr, m2_ptr, row_tile, narrow_cols, rows, narrow,
        True, BLOCK_M,
    )  # fmt: skip


def fits(inner: int, narrow: int, config: dict[str, int]) -> bool:
    """Whether a config's program can hold all of z's and of the next convolution's channels."""
    return inner <= config["BLOCK_K"] and narrow <= config["BLOCK_R"]


def expand(block: Block, relu: bool, tf32: bool, config: dict[str, int]) -> Tensor:
    """act(conv1x1(z - pivot) * scale + shift + S) as a dense channels_last activation.

    A config with `whole_rows` is for programs that have all columns of their rows, where K is at
    most its BLOCK_K; otherwise they have a tile.
    """
    config = dict(config)
    if not config.pop("whole_rows", 0) or block.y.shape[1] > config["BLOCK_K"]:
        return expand_tiles(block, relu, tf32, config)
    images, _, height, width = block.y.shape
    out = new_activation(block.y, (images, block.conv_weight.shape[0], height, width))
    if out.numel() == 0:
        return out
    sizes = block.sizes()
    launch(
        expand_rows_kernel, triton.cdiv(sizes[0], config["BLOCK_M"]), out,
        *block.inputs(), out, *sizes, **block.constants(relu, tf32), **config,
        writes=("out_ptr",), reads=block.reads(), flops=block.flops(),
    )  # fmt: skip
    return out


def expand_reduce(
    block: Block, next_weight: Tensor, relu: bool, tf32: bool, config: dict[str, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out, y, mean, biased variance): out as of `expand`, y = conv1x1(out), and its statistics.

    Args:
        next_weight: [R, N, 1, 1] in the activations' dtype; `fits` must hold.
    """
    images, _, height, width = block.y.shape
    outer, narrow = block.conv_weight.shape[0], next_weight.shape[0]
    out = new_activation(block.y, (images, outer, height, width))
    reduced = new_activation(block.y, (images, narrow, height, width))
    if out.numel() == 0 or reduced.numel() == 0:
        return out, reduced, *empty_statistics(reduced)
    sizes = block.sizes()
    tiles = triton.cdiv(sizes[0], config["BLOCK_M"])
    partials = new_partials(reduced, tiles, True)
    launch(
        expand_reduce_kernel, tiles, out,
        *block.inputs(), out, dense(next_weight), reduced, *partials, *sizes, narrow,
        **block.constants(relu, tf32), **config,
        writes=("out_ptr", "reduced_ptr", "count_ptr", "mean_ptr", "m2_ptr"),
        reads=block.reads(), flops=block.flops() + 2 * sizes[0] * outer * narrow,
    )  # fmt: skip
    return out, reduced, *merge_statistics(*partials)
