"""Option A of the paper: the strided identity with zeros for the channels that are new."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import strided_rows, tile_of, tile_offsets
from .launch import blocks, launch, new_activation, rows_of, strided_elements


@triton.jit
def pad_shortcut_kernel(
    x_ptr, out_ptr, rows, channels, height, width, x_channels, x_height, x_width,
    STRIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out[n, c, i, j] = x[n, c, i*STRIDE, j*STRIDE] for c < x_channels, else 0.

    Reads every STRIDE-th pixel of x; writes out [M, C]. Copies bits, computes nothing.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    rows_here = row0 + tl.arange(0, BLOCK_M)
    valid = (rows_here < rows)[:, None]
    source = strided_rows(rows_here, height, width, x_height, x_width, STRIDE, STRIDE)
    offsets = source[:, None] * x_channels + cols[None, :]
    x = tl.load(x_ptr + offsets, mask=valid & (cols < x_channels)[None, :], other=0.0)
    out_offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    tl.store(out_ptr + out_offsets, x, mask=valid & (cols < channels)[None, :])


@triton.jit
def pad_shortcut_backward_kernel(
    dout_ptr, dx_ptr, rows, channels, height, width, out_channels, out_height, out_width,
    STRIDE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx[n, c, h, w] = dout[n, c, h/STRIDE, w/STRIDE] where both divide, else 0.

    Here rows, channels, height and width are those of dx. Reads the first `channels` columns of
    dout; writes dx [M, C].
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    rows_here = row0 + tl.arange(0, BLOCK_M)
    image = rows_here // (height * width)
    h = (rows_here // width) % height
    w = rows_here % width
    source = (image.to(tl.int64) * out_height + h // STRIDE) * out_width + w // STRIDE
    taken = ((h % STRIDE == 0) & (w % STRIDE == 0))[:, None]
    mask = (rows_here < rows)[:, None] & (cols < channels)[None, :]
    offsets = source[:, None] * out_channels + cols[None, :]
    g = tl.load(dout_ptr + offsets, mask=mask & taken, other=0.0)
    tl.store(dx_ptr + tile_offsets(row0, cols, channels, BLOCK_M), g, mask=mask)


def _launch(
    kernel, source: Tensor, result: Tensor, stride: int, config: dict[str, int], **declared
) -> None:
    rows, channels = rows_of(result), result.shape[1]
    if result.numel() == 0:
        return
    shape = blocks(config["tile"], channels)
    grid = triton.cdiv(rows, shape["BLOCK_M"]) * triton.cdiv(channels, shape["BLOCK_C"])
    launch(
        kernel, grid, result,
        source, result, rows, channels, *result.shape[2:], source.shape[1], *source.shape[2:],
        STRIDE=stride, **shape, num_warps=config["num_warps"], **declared,
    )  # fmt: skip


def pad_shortcut(x: Tensor, channels: int, stride: int, config: dict[str, int]) -> Tensor:
    """x [N, C, H, W] strided and padded with zero channels to [N, channels, H', W']."""
    spatial = [(extent - 1) // stride + 1 for extent in x.shape[2:]]
    out = new_activation(x, (x.shape[0], channels, *spatial))
    _launch(
        pad_shortcut_kernel, x, out, stride, config,
        writes=("out_ptr",), reads={"x_ptr": strided_elements(x, stride)},
    )  # fmt: skip
    return out


def pad_shortcut_backward(
    dout: Tensor, size: Sequence[int], stride: int, config: dict[str, int]
) -> Tensor:
    """Gradient of `pad_shortcut` for an x of sizes `size`."""
    dx = new_activation(dout, size)
    _launch(
        pad_shortcut_backward_kernel, dout, dx, stride, config,
        writes=("dx_ptr",), reads={"dout_ptr": rows_of(dout) * dx.shape[1]},
    )  # fmt: skip
    return dx
