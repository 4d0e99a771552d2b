"""A convolution weight kept in fp32 beside 16-bit activations, as under autocast."""

from __future__ import annotations

import pytest
import torch

import fastres

launch = torch.ops.fastres
GEOMETRY = ([1, 1], [1, 1], [1, 1], 1)


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", torch.bfloat16),
        ("native", torch.bfloat16),
        ("triton", torch.float16),
    ],
)
def test_a_wider_weight_is_used_in_the_dtype_of_x_and_its_gradient_is_wide(backend, dtype):
    x = torch.randn(2, 8, 5, 5).to(dtype)
    weight = torch.randn(6, 8, 3, 3)
    dy = torch.randn(2, 6, 5, 5).to(dtype)
    with fastres.backend(backend):
        y, mean, var = launch.conv_stats(x, weight, *GEOMETRY, None, None, None, None, True)
        narrow = launch.conv_stats(x, weight.to(dtype), *GEOMETRY, None, None, None, None, True)
        dx, dw = launch.conv_backward(dy, x, weight, *GEOMETRY, True, True)
        _, narrow_dw = launch.conv_backward(dy, x, weight.to(dtype), *GEOMETRY, True, True)
    assert y.dtype == dx.dtype == dtype
    assert mean.dtype == var.dtype == dw.dtype == torch.float32
    assert torch.equal(y, narrow[0])
    assert torch.equal(mean, narrow[1])
    assert torch.equal(dw, narrow_dw.float())
