"""Checks at the public door: what an operator is given must fit, or the error says what does not.

Each level below trusts these.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

_INTEGERS = (int, torch.SymInt)
_NOTHING = nullcontext()


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """(value, value) for an int, the two entries of a sequence otherwise."""
    if type(value) is tuple and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value  # what modules hold, without the generality below
    entries = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(entries) != 2 or not all(isinstance(entry, _INTEGERS) for entry in entries):
        raise TypeError(f"{name} must be an int or two ints, got {value!r}")
    return entries


def autocasting(device: str) -> bool:
    """Whether autocast is on for this type of device."""
    # meta knows no autocast, and asking it is an error; torch's own question for that
    # (is_autocast_available) is one that Dynamo cannot trace in torch 2.11
    return device != "meta" and torch.is_autocast_enabled(device)


def uncast(device: str) -> AbstractContextManager:
    """No autocast inside: fp32 products of an operator are meant to be that."""
    return torch.autocast(device, enabled=False) if autocasting(device) else _NOTHING


def check_activation(name: str, tensor: Tensor) -> None:
    """`tensor` must be a floating [N, C, H, W]."""
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
    if tensor.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions [N, C, H, W], got {tensor.dim()}: {tuple(tensor.shape)}"
        )
    if tensor.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 channel, got {tuple(tensor.shape)}")


def _check_same(name: str, tensor: Tensor, anchor: Tensor) -> None:
    if tensor.device != anchor.device:
        raise ValueError(f"{name} must be on x's device {anchor.device}, got {tensor.device}")
    if tensor.dtype != anchor.dtype:
        raise ValueError(f"{name} must have x's dtype {anchor.dtype}, got {tensor.dtype}")


def check_conv(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[int, int, int, int]:
    """Check a convolution's arguments and return its output's size [N, C_out, H', W']."""
    check_activation("x", x)
    return check_conv_of(x.shape, x, weight, stride, padding, dilation, groups)


def check_conv_of(
    size: Sequence[int],
    like: Tensor,
    weight: Tensor,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> tuple[int, int, int, int]:
    """The same for an input of `size` yet to be computed, with the device and dtype of `like`."""
    if weight.dim() != 4 or 0 in weight.shape:
        raise ValueError(
            f"weight must be [C_out, C_in / groups, KH, KW], none of them 0, "
            f"got {tuple(weight.shape)}"
        )
    if weight.device != like.device:
        raise ValueError(f"weight must be on x's device {like.device}, got {weight.device}")
    if weight.dtype != like.dtype and not autocasting(like.device.type):
        raise ValueError(f"weight must have x's dtype {like.dtype}, got {weight.dtype}")
    for name, values, least in (
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if min(values) < least:
            raise ValueError(f"{name} must be at least {least}, got {values}")
    if groups < 1 or weight.shape[0] % groups:
        raise ValueError(
            f"groups must divide weight's {weight.shape[0]} output channels, got {groups}"
        )
    if size[1] != weight.shape[1] * groups:
        raise ValueError(
            f"x must have {weight.shape[1] * groups} channels "
            f"(weight {tuple(weight.shape)}, groups {groups}), got {size[1]}"
        )
    spatial = []
    for i, axis in enumerate("HW"):
        room = size[2 + i] + 2 * padding[i] - dilation[i] * (weight.shape[2 + i] - 1)
        if room < 1:
            raise ValueError(
                f"x's {axis} must reach the kernel's extent "
                f"{dilation[i] * (weight.shape[2 + i] - 1) + 1} with padding {padding[i]}, "
                f"got {size[2 + i]}"
            )
        spatial.append((room - 1) // stride[i] + 1)
    return size[0], weight.shape[0], spatial[0], spatial[1]


def check_bn(name: str, bn: Any, channels: int, device: torch.device) -> None:
    """Every vector of the BatchNormState must be [channels], on `device`."""
    for field in ("weight", "bias", "running_mean", "running_var"):
        vector = getattr(bn, field)
        if vector is None:
            continue
        if vector.dim() != 1 or vector.shape[0] != channels:
            raise ValueError(
                f"{name}.{field} must have shape ({channels},), got {tuple(vector.shape)}"
            )
        if vector.device != device:
            raise ValueError(f"{name}.{field} must be on x's device {device}, got {vector.device}")
        if not vector.is_floating_point():
            raise TypeError(f"{name}.{field} must be floating point, got {vector.dtype}")
    if (bn.running_mean is None) != (bn.running_var is None):
        given = "running_var" if bn.running_mean is None else "running_mean"
        raise ValueError(f"{name} must have both running statistics or none, got {given} alone")
    if not bn.training and bn.running_mean is None:
        raise ValueError(f"{name} must have running statistics when it is not training, got None")


def check_training_batch(bn: Any, size: Sequence[int]) -> None:
    """Statistics of a batch need more than one value per channel (torch's ValueError)."""
    if bn.training and bn.process_group is None and size[0] * size[2] * size[3] == 1:
        raise ValueError(
            "Expected more than 1 value per channel when training, "
            f"got input size {torch.Size(size)}"
        )


def check_shortcut(
    shortcut: Tensor, anchor: Tensor, size: Sequence[int], s_bn: Any, stride: int
) -> None:
    """The shortcut must end up as `size`, by itself, by its BN, or padded and strided."""
    check_activation("shortcut", shortcut)
    _check_same("shortcut", shortcut, anchor)
    if s_bn is not None:
        check_bn("shortcut_bn", s_bn, size[1], anchor.device)
        check_training_batch(s_bn, size)
        if stride != 1:
            raise ValueError(f"shortcut_stride must be 1 beside a shortcut_bn, got {stride}")
        if tuple(shortcut.shape) != tuple(size):
            raise ValueError(
                f"shortcut must have the output's shape {tuple(size)}, got {tuple(shortcut.shape)}"
            )
        return
    check_identity(shortcut.shape, size, stride)


def check_identity(given: Sequence[int], size: Sequence[int], stride: int) -> None:
    """A shortcut of sizes `given`, taken at every `stride`-th place and padded, must be `size`."""
    if stride < 1:
        raise ValueError(f"shortcut_stride must be at least 1, got {stride}")
    n, c, h, w = given
    strided = (n, (h - 1) // stride + 1, (w - 1) // stride + 1)
    if strided != (size[0], size[2], size[3]) or c > size[1]:
        raise ValueError(
            f"shortcut, read at every {stride}. place and padded to {size[1]} channels, must "
            f"give the output's shape {tuple(size)}, got a shortcut of shape "
            f"{tuple(given)}"
        )


def check_window(
    x: Tensor, kernel_size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> None:
    """A pooling window must have 1 to 255 places and always hold a pixel of x."""
    check_window_of(x.shape, kernel_size, stride, padding)


def check_window_of(
    size: Sequence[int],
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> None:
    """The same for an x of `size` [N, C, H, W] yet to be computed."""
    if min(kernel_size) < 1 or kernel_size[0] * kernel_size[1] > 255:
        raise ValueError(f"kernel_size must have 1 to 255 places, got {kernel_size}")
    if min(stride) < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    for i, axis in enumerate("HW"):
        if not 0 <= 2 * padding[i] <= kernel_size[i]:
            raise ValueError(
                f"padding must be between 0 and half of kernel_size {kernel_size}, got {padding}"
            )
        if size[2 + i] + 2 * padding[i] < kernel_size[i]:
            raise ValueError(
                f"x's {axis} must reach kernel_size {kernel_size[i]} with padding {padding[i]}, "
                f"got {size[2 + i]}"
            )
