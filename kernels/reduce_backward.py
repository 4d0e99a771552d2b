"""Both gradients of a 1x1 convolution with BN and activation after it, in one pass.

This is the bottleneck's first convolution, from wide x to narrow y: x and the residual are read
once, and the gradient of the block before leaves already joined and masked.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .chain import Join, Link, joined_gradient, link_gradient
from .launch import dense, launch, new_activation, new_statistics, rows_of
from .partials import row_programs
from .sum_rows import weight_gradient


@triton.jit
def reduce_backward_kernel(
    dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr, mean_gx_ptr,
    x_ptr, w_ptr, r_ptr, r_mask_ptr, dx_ptr, dw_ptr,
    rows, inner, outer, height, width, r_channels, r_height, r_width, row_programs,
    RS_H: tl.constexpr, RS_W: tl.constexpr, RELU: tl.constexpr, MASK_BY_X: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dx = dy w + residual where x > 0, dw = dy^T x, with dy as in `link_gradient`

    A program keeps BLOCK_N channels of x and all channels of y (outer <= BLOCK_K), and goes over
    the row tiles p, p + P, ... for P = row_programs, so w [K, N] stays on chip and dw is summed in
    registers; column blocks of the same rows are neighbours in the grid and share dy's operands in
    L2. Accumulates in fp32. Reads dout, y and, where given, out [M, K], x, the residual [M, N];
    writes dx [M, N] where dx_ptr and dw [P, K, N] where dw_ptr is given.
    """
    pid = tl.program_id(0)
    across = tl.cdiv(inner, BLOCK_N)
    program = pid // across
    cols = (pid % across) * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    lanes = tl.arange(0, BLOCK_M)
    inside = cols < inner
    channels = ks < outer
    w_offsets = ks[:, None] * inner + cols[None, :]
    w_mask = channels[:, None] & inside[None, :]
    if dx_ptr is not None:
        w = tl.load(w_ptr + w_offsets, mask=w_mask, other=0.0)
    dw = tl.zeros((BLOCK_K, BLOCK_N), tl.float32)
    for tile in range(program, tl.cdiv(rows, BLOCK_M), row_programs):
        row0 = tile * BLOCK_M
        valid = row0 + lanes < rows
        dy = link_gradient(
            dout_ptr, out_ptr, y_ptr, mean_ptr, invstd_ptr, weight_ptr, bias_ptr, mean_g_ptr,
            mean_gx_ptr, row0.to(tl.int64) * outer, lanes[:, None] * outer + ks[None, :],
            valid[:, None] & channels[None, :], ks, channels, RELU,
        )  # fmt: skip
        # a 64-bit start and 32-bit offsets take fewer registers than 64-bit offsets
        start = row0.to(tl.int64) * inner
        offsets = lanes[:, None] * inner + cols[None, :]
        mask = valid[:, None] & inside[None, :]
        x = tl.load(x_ptr + start + offsets, mask=mask, other=0.0)
        if dw_ptr is not None:
            dw = tl.dot(tl.trans(dy), x, dw, input_precision=PRECISION)
        if dx_ptr is not None:
            dx = tl.dot(dy, w, input_precision=PRECISION)
            dx = joined_gradient(
                dx, x, r_ptr, r_mask_ptr, row0, valid, cols, inside, height, width, r_channels,
                r_height, r_width, RS_H, RS_W, MASK_BY_X, BLOCK_M,
            )  # fmt: skip
            tl.store(dx_ptr + start + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    if dw_ptr is not None:
        base = dw_ptr + program.to(tl.int64) * outer * inner
        tl.store(base + w_offsets, dw, mask=w_mask)


def fits(outer: int, config: dict[str, int]) -> bool:
    """Whether a program of this config keeps all `outer` channels of y."""
    return outer <= config["BLOCK_K"]


def reduce_backward(
    link: Link, relu: bool, x: Tensor, weight: Tensor, join: Join, need_dx: bool, need_dw: bool,
    tf32: bool, config: dict[str, int],
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(dx, dw) of a 1x1 convolution of stride one, activations dense channels_last.

    Args:
        relu: whether dout is masked, by link.out or, where that is None, recomputed from y.
        weight: [K, N, 1, 1], used in the dtype of x; dw has its own dtype.
        tf32: multiply fp32 in TF32.
        config: blocks that `fits` allows, and `programs`, the size of the grid aimed at. (Whether
            dy is `stored` first is the caller's to do: its link then has no mean.)
    """
    dx = new_activation(x, x.shape) if need_dx else x.new_empty(0)
    rows, inner, outer = rows_of(x), x.shape[1], weight.shape[0]
    if x.numel() == 0 or not (need_dx or need_dw):
        return dx, weight_gradient(None, weight) if need_dw else weight.new_empty(0)
    meta = {name: value for name, value in config.items() if name not in ("programs", "stored")}
    across = triton.cdiv(inner, config["BLOCK_N"])
    programs = row_programs(rows, config["BLOCK_M"], across, config["programs"])
    partials = new_statistics(x, programs, outer * inner) if need_dw else None
    launch(
        reduce_backward_kernel, programs * across, x,
        *link, x, dense(weight.to(x.dtype)), join.residual, join.mask,
        dx if need_dx else None, partials,
        rows, inner, outer, *x.shape[2:], *join.sizes(), programs,
        RS_H=join.stride[0], RS_W=join.stride[1], RELU=relu, MASK_BY_X=join.mask_by_x,
        PRECISION="tf32" if tf32 else "ieee", **meta,
        writes=("dx_ptr", "dw_ptr"), reads=link.reads(relu) | join.reads(inner),
        flops=2 * (need_dx + need_dw) * rows * inner * outer,
    )  # fmt: skip
    return dx, weight_gradient(partials, weight) if need_dw else weight.new_empty(0)
