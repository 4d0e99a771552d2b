"""The end of a bottleneck: the wide 1x1 convolution, its BN, the shortcut and the ReLU at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_channels, relu, tile_offsets
from .gemm import GROUP as GROUP_TILES
from .gemm import grouped_tile, normalised_input
from .launch import dense, launch, new_activation, rows_of
from .operands import PART, centred, halves, tile_pointers

# kinds of shortcut
NONE = tl.constexpr(0)
PLAIN = tl.constexpr(1)  # an identity, or fewer channels and a stride: zeros in the channels above
AFFINE = tl.constexpr(2)  # s * s_scale + s_shift
PROJECTION = tl.constexpr(3)  # conv1x1(s - s_pivot) * s_scale + s_shift


@triton.jit
def convolve_tile(
    x_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr, w_ptr,
    row0, cols, rows, inner, outer, height, width, x_height, x_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_M, BLOCK_N] of (z - pivot) w^T in fp32, z = x or relu(bn(x)).

    x [M', inner] is taken at a stride, w is [outer, inner]; pivot_ptr None is a pivot of zero.
    """
    ks = tl.arange(0, BLOCK_K)
    valid = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None]
    x_tile = tile_pointers(
        x_ptr, row0, ks, inner, height, width, x_height, x_width, STRIDE_H, STRIDE_W, BLOCK_M
    )
    w_tile = w_ptr + cols.to(tl.int64)[None, :] * inner + ks[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(tl.cdiv(inner, BLOCK_K)):
        k0 = step * BLOCK_K
        left = ks < inner - k0
        keep = valid & left[None, :]
        x = tl.load(x_tile + k0, mask=keep, other=0.0)
        w = tl.load(w_tile + k0, mask=left[:, None] & (cols < outer)[None, :], other=0.0)
        if pro_mean_ptr is not None:
            x = normalised_input(
                x, keep, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, k0 + ks, left
            )
        if pivot_ptr is not None:
            x = centred(x, keep, load_channels(pivot_ptr, k0 + ks, left, tl.float32)).to(x.dtype)
        acc = tl.dot(x, w, acc, input_precision=PRECISION)
    return acc


@triton.jit
def load_shortcut(
    s_ptr, row0, col0, rows, s_channels, height, width, s_height, s_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, BLOCK_M: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK_M, COLUMNS] of a shortcut that is not a projection, zero in the channels that
    it lacks; halved into tuples until no part has more than PART columns."""
    if COLUMNS > PART:
        half: tl.constexpr = COLUMNS // 2
        left = load_shortcut(
            s_ptr, row0, col0, rows, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, BLOCK_M, half,
        )  # fmt: skip
        right = load_shortcut(
            s_ptr, row0, col0 + half, rows, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, BLOCK_M, half,
        )  # fmt: skip
        return left, right
    else:
        cols = col0 + tl.arange(0, COLUMNS)
        keep = (row0 + tl.arange(0, BLOCK_M) < rows)[:, None] & (cols < s_channels)[None, :]
        pointers = tile_pointers(
            s_ptr, row0, cols, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, BLOCK_M,
        )  # fmt: skip
        return tl.load(pointers, mask=keep, other=0.0)


@triton.jit
def store_joined(
    acc, s, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, out_ptr, row0, col0, rows, outer,
    KIND: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """Write act(acc * scale + shift + S) of a tile from column col0 on; S comes from s by KIND."""
    columns: tl.constexpr = acc.shape[1]
    if columns > PART:
        left, right = halves(acc)
        if KIND == PROJECTION:
            s_left, s_right = halves(s)
        elif KIND != NONE:
            s_left, s_right = s
        else:
            s_left, s_right = None, None
        store_joined(
            left, s_left, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
            row0, col0, rows, outer, KIND, RELU,
        )  # fmt: skip
        store_joined(
            right, s_right, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
            row0, col0 + columns // 2, rows, outer, KIND, RELU,
        )  # fmt: skip
    else:
        cols = col0 + tl.arange(0, columns)
        value = join(
            acc, s, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, cols, outer, KIND, RELU
        )
        keep = (row0 + tl.arange(0, acc.shape[0]) < rows)[:, None] & (cols < outer)[None, :]
        out = out_ptr + tile_offsets(row0, cols, outer, acc.shape[0])
        tl.store(out, value.to(out_ptr.dtype.element_ty), mask=keep)


@triton.jit
def join(
    acc, s, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, cols, outer,
    KIND: tl.constexpr, RELU: tl.constexpr,
):  # fmt: skip
    """act(acc * scale + shift + S) of a tile in fp32."""
    inside = cols < outer
    scale = load_channels(scale_ptr, cols, inside, tl.float32)
    value = acc * scale[None, :] + load_channels(shift_ptr, cols, inside, tl.float32)[None, :]
    if KIND == PLAIN:
        value += s.to(tl.float32)
    elif KIND != NONE:
        s_scale = load_channels(s_scale_ptr, cols, inside, tl.float32)
        s_shift = load_channels(s_shift_ptr, cols, inside, tl.float32)
        value += s.to(tl.float32) * s_scale[None, :] + s_shift[None, :]
    return relu(value) if RELU else value


@triton.jit
def expand_kernel(
    y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr, w_ptr,
    scale_ptr, shift_ptr, s_ptr, s_pivot_ptr, s_w_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
    rows, inner, outer, s_channels, height, width, s_height, s_width,
    STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, KIND: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """out = act(((z - pivot) w^T) * scale + shift + S), z = y or relu(bn(y))

    S by KIND: nothing, the shortcut s, s * s_scale + s_shift, or the same of a second product
    (s - s_pivot) s_w^T, s taken at a stride. Accumulates in fp32, rounds once. Reads y [M, K] once
    a column tile (from cache but for the first), w [N, K], s [M', s_channels] and s_w
    [N, s_channels]; writes out [M, N].
    """
    row_tile, col_tile = grouped_tile(
        tl.program_id(0), tl.cdiv(rows, BLOCK_M), tl.cdiv(outer, BLOCK_N), GROUP
    )
    row0 = row_tile * BLOCK_M
    cols = col_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    if KIND == PROJECTION:
        s = convolve_tile(
            s_ptr, None, None, None, None, s_pivot_ptr, s_w_ptr,
            row0, cols, rows, s_channels, outer, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
        )  # fmt: skip
    elif KIND != NONE:
        # asked for before the product, that it arrives meanwhile
        s = load_shortcut(
            s_ptr, row0, col_tile * BLOCK_N, rows, s_channels, height, width, s_height, s_width,
            STRIDE_H, STRIDE_W, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    else:
        s = None
    acc = convolve_tile(
        y_ptr, pro_mean_ptr, pro_invstd_ptr, pro_weight_ptr, pro_bias_ptr, pivot_ptr, w_ptr,
        row0, cols, rows, inner, outer, height, width, height, width,
        1, 1, PRECISION, BLOCK_M, BLOCK_N, BLOCK_K,
    )  # fmt: skip
    store_joined(
        acc, s, scale_ptr, shift_ptr, s_scale_ptr, s_shift_ptr, out_ptr,
        row0, col_tile * BLOCK_N, rows, outer, KIND, RELU,
    )  # fmt: skip


class Block(NamedTuple):
    """What an expansion takes: the arguments of the operator up to its shortcut's stride.

    Activations are dense, weights in the activations' dtype.
    """

    y: Tensor
    mean: Tensor | None
    invstd: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    pivot: Tensor | None
    conv_weight: Tensor
    scale: Tensor
    shift: Tensor
    shortcut: Tensor | None
    s_pivot: Tensor | None
    s_conv_weight: Tensor | None
    s_scale: Tensor | None
    s_shift: Tensor | None
    shortcut_stride: Sequence[int]

    @property
    def kind(self) -> tl.constexpr:
        """The kind of shortcut."""
        if self.shortcut is None:
            return NONE
        if self.s_conv_weight is not None:
            return PROJECTION
        return PLAIN if self.s_scale is None else AFFINE

    def inputs(self) -> list[Tensor | None]:
        """The kernel's tensors before the results."""
        return [
            *self[:6], dense(self.conv_weight), self.scale, self.shift, self.shortcut,
            self.s_pivot, dense(self.s_conv_weight), self.s_scale, self.s_shift,
        ]  # fmt: skip

    def sizes(self) -> list[int]:
        """rows, inner, outer, and the shortcut's channels, with both images' sizes."""
        height, width = self.y.shape[2:]
        s_channels, s_height, s_width = (
            (1, 1, 1) if self.shortcut is None else self.shortcut.shape[1:]
        )
        outer, inner = self.conv_weight.shape[:2]
        return [rows_of(self.y), inner, outer, s_channels, height, width, s_height, s_width]

    def reads(self) -> dict[str, int]:
        """Elements read of what is read at a stride."""
        if self.shortcut is None:
            return {}
        return {"s_ptr": rows_of(self.y) * self.shortcut.shape[1]}

    def flops(self) -> int:
        """Of the one or two products."""
        outer, inner = self.conv_weight.shape[:2]
        if self.s_conv_weight is not None:
            inner += self.s_conv_weight.shape[1]
        return 2 * rows_of(self.y) * outer * inner

    def constants(self, relu: bool, tf32: bool) -> dict[str, int | bool | str]:
        """The kernel's compile-time arguments but for its block sizes."""
        return {
            "STRIDE_H": self.shortcut_stride[0], "STRIDE_W": self.shortcut_stride[1],
            "KIND": self.kind.value, "RELU": relu, "PRECISION": "tf32" if tf32 else "ieee",
        }  # fmt: skip


def expand_tiles(block: Block, relu: bool, tf32: bool, config: dict[str, int]) -> Tensor:
    """act(conv1x1(z - pivot) * scale + shift + S), a program for each tile of the result."""
    images, _, height, width = block.y.shape
    outer = block.conv_weight.shape[0]
    out = new_activation(block.y, (images, outer, height, width))
    if out.numel() == 0:
        return out
    sizes = block.sizes()
    launch(
        expand_kernel,
        triton.cdiv(sizes[0], config["BLOCK_M"]) * triton.cdiv(outer, config["BLOCK_N"]), out,
        *block.inputs(), out, *sizes, **block.constants(relu, tf32), GROUP=GROUP_TILES, **config,
        writes=("out_ptr",), reads=block.reads(), flops=block.flops(),
    )  # fmt: skip
    return out
