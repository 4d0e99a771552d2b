"""Input gradients of a join: of its batch normalisation and of its shortcut, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from .arithmetic import load_bias, load_channels, load_scale, strided_rows, tile_of, tile_offsets
from .bn_backward_reduce import masked_gradient
from .launch import accumulator, blocks, launch, new_activation, rows_of


@triton.jit
def branch_gradient(
    g, y, mean, scale, mean_g, invstd_ptr, mean_gx_ptr, cols, columns, ACC: tl.constexpr
):
    """scale * (g - mean_g - xhat * mean_gx); mean_gx_ptr None is a frozen BN: scale * g."""
    if mean_gx_ptr is not None:
        invstd = load_channels(invstd_ptr, cols, columns, ACC)
        slope = invstd * load_channels(mean_gx_ptr, cols, columns, ACC)
        g = g - mean_g[None, :] - (y - mean[None, :]) * slope[None, :]
    return g * scale[None, :]


@triton.jit
def bn_backward_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    s_ptr, s_mean_ptr, s_invstd_ptr, s_weight_ptr, mean_gx_s_ptr, dy_ptr, ds_ptr,
    rows, channels, height, width, s_channels, s_height, s_width,
    SHORTCUT: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """g = dout * (out > 0); dy = weight * invstd * (g - mean_g - xhat * mean_gx)

    The shortcut's gradient is not wanted ("none"), g ("identity"), the same formula with s ("bn"),
    or g at pixel (i*STRIDE, j*STRIDE) and zero elsewhere ("pad": this program writes the whole
    STRIDE x STRIDE patch). Computes in ACC. Reads dout [M, C] and, where needed, out, y and s;
    writes dy [M, C] and ds.
    """
    row0, cols = tile_of(tl.program_id(0), channels, BLOCK_M, BLOCK_C)
    rows_here = row0 + tl.arange(0, BLOCK_M)
    columns = cols < channels
    valid = (rows_here < rows)[:, None]
    mask = valid & columns[None, :]
    offsets = tile_offsets(row0, cols, channels, BLOCK_M)
    g = tl.load(dout_ptr + offsets, mask=mask, other=0.0).to(ACC)
    mean = load_channels(mean_ptr, cols, columns, ACC)
    scale = load_scale(invstd_ptr, weight_ptr, cols, columns, ACC)
    bias = load_bias(bias_ptr, cols, columns, ACC)
    # a y that nothing below uses is never loaded: the compiler drops the load
    y = tl.load(y_ptr + offsets, mask=mask, other=0.0).to(ACC)
    g = masked_gradient(g, y, y_ptr, out_ptr, offsets, mask, mean, scale, bias, RELU)
    if mean_g_ptr is not None:
        mean_g = load_channels(mean_g_ptr, cols, columns, ACC)
    else:
        mean_g = tl.zeros((BLOCK_C,), ACC)
    dy = branch_gradient(g, y, mean, scale, mean_g, invstd_ptr, mean_gx_ptr, cols, columns, ACC)
    tl.store(dy_ptr + offsets, dy.to(dy_ptr.dtype.element_ty), mask=mask)
    if SHORTCUT == "identity":
        tl.store(ds_ptr + offsets, g.to(ds_ptr.dtype.element_ty), mask=mask)
    elif SHORTCUT == "bn":
        s = tl.load(s_ptr + offsets, mask=mask, other=0.0).to(ACC)
        s_mean = load_channels(s_mean_ptr, cols, columns, ACC)
        s_scale = load_scale(s_invstd_ptr, s_weight_ptr, cols, columns, ACC)
        ds = branch_gradient(
            g, s, s_mean, s_scale, mean_g, s_invstd_ptr, mean_gx_s_ptr, cols, columns, ACC
        )
        tl.store(ds_ptr + offsets, ds.to(ds_ptr.dtype.element_ty), mask=mask)
    elif SHORTCUT == "pad":
        corner = strided_rows(rows_here, height, width, s_height, s_width, STRIDE, STRIDE)
        ds_offsets = corner[:, None] * s_channels + cols[None, :]
        room_h = s_height - ((rows_here // width) % height) * STRIDE
        room_w = s_width - (rows_here % width) * STRIDE
        ds_mask = valid & (cols < s_channels)[None, :]
        ds = g.to(ds_ptr.dtype.element_ty)
        for a in tl.static_range(STRIDE):
            for b in tl.static_range(STRIDE):
                within = ((a < room_h) & (b < room_w))[:, None]
                step = (a * s_width + b) * s_channels
                value = ds if a + b == 0 else tl.zeros_like(ds)
                tl.store(ds_ptr + ds_offsets + step, value, mask=ds_mask & within)


def gradient_kind(y: Tensor, s_mean: Tensor | None, size: Sequence[int], stride: int) -> str:
    """Which gradient the shortcut gets: "none", "identity", "bn" or "pad"."""
    if not len(size):
        return "none"
    if s_mean is not None:
        return "bn"
    return "identity" if stride == 1 and size[1] == y.shape[1] else "pad"


def bn_backward(
    dout: Tensor, out: Tensor | None, y: Tensor, mean: Tensor, invstd: Tensor,
    weight: Tensor | None, bias: Tensor | None, mean_g: Tensor | None, mean_gx: Tensor | None,
    shortcut: Tensor | None, s_mean: Tensor | None, s_invstd: Tensor | None,
    s_weight: Tensor | None, mean_gx_s: Tensor | None, size: Sequence[int], stride: int,
    relu: bool, config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dy, dshortcut), all activations dense channels_last; dshortcut is [0] if size is []."""
    kind = gradient_kind(y, s_mean, size, stride)
    dy = new_activation(y, y.shape)
    ds = y.new_empty(0) if kind == "none" else new_activation(y, size)
    if dy.numel() == 0:
        return dy, ds
    rows, channels = rows_of(y), y.shape[1]
    s_channels, s_height, s_width = y.shape[1:] if kind == "none" else size[1:]
    # a frozen normalisation needs y for the mask only
    uses_y = mean_gx is not None or (relu and out is None)
    shape = blocks(config["tile"], channels)
    grid = triton.cdiv(rows, shape["BLOCK_M"]) * triton.cdiv(channels, shape["BLOCK_C"])
    launch(
        bn_backward_kernel, grid, y,
        dout, out, y, mean, invstd, weight, bias, mean_g, mean_gx,
        shortcut, s_mean, s_invstd, s_weight, mean_gx_s, dy, None if kind == "none" else ds,
        rows, channels, y.shape[2], y.shape[3], s_channels, s_height, s_width,
        SHORTCUT=kind, STRIDE=stride, RELU=relu,
        **shape, ACC=accumulator(y), num_warps=config["num_warps"],
        writes=("dy_ptr", "ds_ptr"), reads=None if uses_y else {"y_ptr": 0},
    )  # fmt: skip
    return dy, ds
