"""Bad input: the error names the argument, what was expected and what came."""

from __future__ import annotations

import re

import pytest
import torch

from fastres.functional import (
    BatchNormState,
    bn_act,
    bn_add_act,
    conv2d,
    conv_bn_act,
    conv_bn_add_act,
    max_pool2d,
    pad_shortcut,
)

X = torch.randn(2, 3, 5, 5)
W = torch.randn(4, 3, 3, 3)
Y = torch.randn(2, 4, 3, 3)


def state(channels: int = 4, **changes) -> BatchNormState:
    vectors = [torch.ones(channels) for _ in range(4)]
    return BatchNormState(*vectors)._replace(**changes)


CASES = {
    "integer x": (lambda: conv_bn_act(X.long(), W, state()), TypeError,
                  "x must be a floating-point tensor, got torch.int64"),
    "integer y": (lambda: bn_act(Y.int(), state()), TypeError,
                  "y must be a floating-point tensor, got torch.int32"),
    "complex x": (lambda: conv2d(X.to(torch.complex64), W), TypeError, "got torch.complex64"),
    "boolean pool": (lambda: max_pool2d(X > 0, 2), TypeError, "got torch.bool"),
    "three dimensions": (lambda: bn_act(Y[0], state()), ValueError,
                         "y must have 4 dimensions [N, C, H, W], got 3: (4, 3, 3)"),
    "no channel": (lambda: bn_act(Y[:, :0], state(0)), ValueError,
                   "y must have at least 1 channel, got (2, 0, 3, 3)"),
    "weight's dimensions": (lambda: conv2d(X, W[0]), ValueError,
                            "weight must be [C_out, C_in / groups, KH, KW], none of them 0, "
                            "got (3, 3, 3)"),
    "empty weight": (lambda: conv2d(X, W[:0]), ValueError, "got (0, 3, 3, 3)"),
    "device of weight": (lambda: conv2d(X, W.to("meta")), ValueError,
                         "weight must be on x's device cpu, got meta"),
    "dtype of weight": (lambda: conv2d(X, W.double()), ValueError,
                        "weight must have x's dtype torch.float32, got torch.float64"),
    "channels of x": (lambda: conv_bn_act(X[:, :2], W, state()), ValueError,
                      "x must have 3 channels (weight (4, 3, 3, 3), groups 1), got 2"),
    "groups": (lambda: conv2d(X, W, groups=3), ValueError,
               "groups must divide weight's 4 output channels, got 3"),
    "no group": (lambda: conv2d(X, W, groups=0), ValueError, "got 0"),
    "stride": (lambda: conv2d(X, W, stride=0), ValueError,
               "stride must be at least 1, got (0, 0)"),
    "padding": (lambda: conv2d(X, W, padding=(0, -1)), ValueError,
                "padding must be at least 0, got (0, -1)"),
    "dilation": (lambda: conv2d(X, W, dilation=0), ValueError,
                 "dilation must be at least 1, got (0, 0)"),
    "padding by name": (lambda: conv2d(X, W, padding="same"), TypeError,
                        "padding must be an int or two ints, got 'same'"),
    "three strides": (lambda: conv2d(X, W, stride=(1, 1, 1)), TypeError,
                      "stride must be an int or two ints, got (1, 1, 1)"),
    "fractional stride": (lambda: conv2d(X, W, stride=1.5), TypeError, "got 1.5"),
    "small x": (lambda: conv2d(X[..., :2], W), ValueError,
                "x's W must reach the kernel's extent 3 with padding 0, got 2"),
    "small dilated x": (lambda: conv2d(X[:, :, :4], W, dilation=2, padding=(0, 1)), ValueError,
                        "x's H must reach the kernel's extent 5 with padding 0, got 4"),
    "vector's length": (lambda: conv_bn_act(X, W, state(bias=torch.ones(5))), ValueError,
                        "bn.bias must have shape (4,), got (5,)"),
    "vector's dimensions": (lambda: bn_act(Y, state(weight=torch.ones(4, 1))), ValueError,
                            "bn.weight must have shape (4,), got (4, 1)"),
    "vector's device": (
        lambda: bn_act(Y, state(running_var=torch.ones(4, device="meta"))), ValueError,
        "bn.running_var must be on x's device cpu, got meta"),
    "vector's dtype": (lambda: bn_act(Y, state(weight=torch.ones(4).long())), TypeError,
                       "bn.weight must be floating point, got torch.int64"),
    "eval without statistics": (
        lambda: bn_act(Y, state(running_mean=None, running_var=None, training=False)), ValueError,
        "bn must have running statistics when it is not training, got None"),
    "one statistic": (lambda: bn_act(Y, state(running_var=None)), ValueError,
                      "bn must have both running statistics or none, got running_mean alone"),
    "shortcut's dtype": (lambda: bn_add_act(Y, state(), Y.bfloat16()), ValueError,
                         "shortcut must have x's dtype torch.float32, got torch.bfloat16"),
    "shortcut's device": (lambda: bn_add_act(Y, state(), Y.to("meta")), ValueError,
                          "shortcut must be on x's device cpu, got meta"),
    "integer shortcut": (lambda: bn_add_act(Y, state(), Y.long()), TypeError,
                         "shortcut must be a floating-point tensor, got torch.int64"),
    "shortcut's shape": (
        lambda: conv_bn_add_act(X, W, state(), Y[..., :2]), ValueError,
        "shortcut, read at every 1. place and padded to 4 channels, must give the output's "
        "shape (2, 4, 3, 3), got a shortcut of shape (2, 4, 3, 2)"),
    "wide shortcut": (lambda: bn_add_act(Y, state(), torch.randn(2, 5, 3, 3)), ValueError,
                      "got a shortcut of shape (2, 5, 3, 3)"),
    "shortcut's batch": (lambda: bn_add_act(Y, state(), Y[:1]), ValueError, "(1, 4, 3, 3)"),
    "shortcut's stride": (lambda: bn_add_act(Y, state(), Y, shortcut_stride=0), ValueError,
                          "shortcut_stride must be at least 1, got 0"),
    "stride beside a BN": (
        lambda: bn_add_act(Y, state(), Y, shortcut_bn=state(), shortcut_stride=2), ValueError,
        "shortcut_stride must be 1 beside a shortcut_bn, got 2"),
    "shape beside a BN": (
        lambda: bn_add_act(Y, state(), Y[:, :3], shortcut_bn=state()), ValueError,
        "shortcut must have the output's shape (2, 4, 3, 3), got (2, 3, 3, 3)"),
    "shortcut_bn's length": (
        lambda: bn_add_act(Y, state(), Y, shortcut_bn=state(3)), ValueError,
        "shortcut_bn.weight must have shape (4,), got (3,)"),
    "padding to fewer": (lambda: pad_shortcut(X, 2), ValueError,
                         "out_channels must be at least x's 3 channels, got 2"),
    "pad_shortcut's stride": (lambda: pad_shortcut(X, 3, 0), ValueError,
                              "stride must be at least 1, got 0"),
    "pool's window": (lambda: max_pool2d(X, 16), ValueError,
                      "kernel_size must have 1 to 255 places, got (16, 16)"),
    "pool's stride": (lambda: max_pool2d(X, 2, 0), ValueError,
                      "stride must be at least 1, got (0, 0)"),
    "pool's padding": (lambda: max_pool2d(X, 2, 1, 2), ValueError,
                       "padding must be between 0 and half of kernel_size (2, 2), got (2, 2)"),
    "pool's input": (lambda: max_pool2d(X, (3, 7), 1), ValueError,
                     "x's W must reach kernel_size 7 with padding 0, got 5"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name):
    call, error, message = CASES[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda y: bn_act(y, state()),
        lambda y: bn_add_act(y, state(training=False), y, shortcut_bn=state()),
        lambda y: conv_bn_act(torch.randn(1, 3, 3, 3), W, state()),
    ],
    ids=["bn", "shortcut_bn", "conv"],
)
def test_one_value_per_channel_raises_torchs_error(call):
    y = torch.randn(1, 4, 1, 1)
    with pytest.raises(ValueError, match="Expected more than 1 value") as torchs:
        torch.nn.functional.batch_norm(y, None, None, training=True)
    with pytest.raises(ValueError, match="Expected more than 1 value") as ours:
        call(y)
    assert str(ours.value) == str(torchs.value)


def test_running_statistics_are_untouched_by_a_call_that_raises():
    bn = state(num_batches_tracked=torch.tensor(0))
    before = [vector.clone() for vector in bn[2:5]]
    with pytest.raises(ValueError, match="shortcut"):
        bn_add_act(Y, bn, Y[:1])
    assert all(torch.equal(now, then) for now, then in zip(bn[2:5], before, strict=True))
