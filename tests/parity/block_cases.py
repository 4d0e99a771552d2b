"""Random arguments of the operators of whole blocks: lists that a backend's function takes.

Where a ReLU's decision would depend on rounding, its input is moved away from zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHORTCUTS = ("none", "identity", "pad", "affine", "projection", "strided projection")
RESIDUALS = ("identity", "masked", "strided", "wider")
# a convolution: kernel size, stride, padding, dilation
PADDINGS = {
    "1x1": (1, 1, 0, 1),
    "1x1 stride 2": (1, 2, 0, 1),
    "3x3": (3, 1, 1, 1),
    "3x3 stride 2": (3, 2, 1, 1),
    "3x3 dilated": (3, 1, 2, 2),
    "3x3 unpadded edge": (3, 1, 2, 1),
}
# the least distance of a pre-activation from zero
APART = 0.1


class Draw:
    """Random tensors: activations in one dtype and channels_last, parameters in fp32."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *sizes: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        values = torch.randn(sizes, generator=self.generator, dtype=torch.float64)
        return (values * scale + shift).float()

    def activation(self, *sizes: int) -> Tensor:
        return self.normal(*sizes).to(self.dtype).contiguous(memory_format=torch.channels_last)

    def apart(self, *sizes: int) -> Tensor:
        """An activation of which no value lies near zero."""
        value = self.normal(*sizes)
        value = torch.where(value.abs() < APART, torch.full_like(value, 2 * APART), value)
        return value.to(self.dtype).contiguous(memory_format=torch.channels_last)

    def weight(self, *sizes: int) -> Tensor:
        fan_in = max(1, sizes[1:].numel() if isinstance(sizes, torch.Size) else _product(sizes[1:]))
        return self.normal(*sizes, scale=fan_in**-0.5)

    def norm(self, channels: int, affine: bool = True) -> list[Tensor | None]:
        """mean, invstd, weight and bias; weights of either sign."""
        vectors: list[Tensor | None] = [
            self.normal(channels, scale=0.3),
            self.normal(channels, scale=0.2, shift=1.0).abs() + 0.3,
            self.normal(channels, scale=0.3, shift=1.0),
            self.normal(channels, scale=0.3),
        ]
        if channels > 1:
            vectors[2][0] *= -1
        return vectors if affine else [*vectors[:2], None, None]

    def normalised(self, norm: list[Tensor | None], *sizes: int) -> Tensor:
        """y with bn(y) away from zero."""
        mean, invstd, weight, bias = norm
        scale = invstd if weight is None else invstd * weight
        value = self.apart(*sizes).float()
        value = value if bias is None else value - bias.view(1, -1, 1, 1)
        y = value / scale.view(1, -1, 1, 1) + mean.view(1, -1, 1, 1)
        return y.to(self.dtype).contiguous(memory_format=torch.channels_last)


def _product(sizes) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


def _strided(extent: int, stride: int) -> int:
    return (extent - 1) // stride + 1


def moments_case(n, k, width, height, columns, dtype, *, bn, stride=1, seed=0) -> list:
    """Arguments of `moments`; `width` is not used."""
    draw = Draw(dtype, seed)
    norm = draw.norm(k) if bn else [None] * 4
    y = draw.normalised(norm, n, k, height, columns) if bn else draw.apart(n, k, height, columns)
    return [y, *norm, draw.normal(k, scale=0.2, shift=0.5), [stride, stride]]


def expand_case(
    kind, n, k, width, height, columns, dtype, *, bn, relu=True, next_channels=None, seed=0
) -> list:  # fmt: skip
    """Arguments of `expand`, or of `expand_reduce` where `next_channels` is given."""
    draw = Draw(dtype, seed)
    norm = draw.norm(k) if bn else [None] * 4
    y = draw.normalised(norm, n, k, height, columns) if bn else draw.apart(n, k, height, columns)
    pivoted = dtype == torch.float32
    arguments = [
        y, *norm, draw.normal(k, scale=0.2, shift=0.5) if pivoted else None,
        draw.weight(width, k, 1, 1), draw.normal(width, shift=1.0, scale=0.3), draw.normal(width),
    ]  # fmt: skip
    shortcut: list = [None] * 5
    stride = 1
    if kind == "identity":
        shortcut[0] = draw.activation(n, width, height, columns)
    elif kind == "pad":
        stride = 2
        rows, cols = 2 * height - 1, 2 * columns
        shortcut[0] = draw.activation(n, max(1, width // 2), rows, cols)
    elif kind == "affine":
        shortcut[0] = draw.activation(n, width, height, columns)
        shortcut[3:] = [draw.normal(width, shift=1.0, scale=0.3), draw.normal(width)]
    elif kind.endswith("projection"):
        stride = 2 if kind.startswith("strided") else 1
        inner = k + 3
        rows, cols = stride * (height - 1) + 1, stride * columns
        shortcut = [
            draw.activation(n, inner, rows, cols),
            draw.normal(inner, scale=0.2) if pivoted else None,
            draw.weight(width, inner, 1, 1),
            draw.normal(width, shift=1.0, scale=0.3),
            draw.normal(width),
        ]
    arguments += [*shortcut, [stride, stride], relu]
    if next_channels is not None:
        arguments.append(draw.weight(next_channels, width, 1, 1))
    return arguments


def expand_backward_case(
    n, k, width, height, columns, dtype, *, bn, masked, frozen=False, stride=1, seed=0
) -> tuple[list, list]:  # fmt: skip
    """Arguments of `expand_backward_weight` and of `expand_backward_data`."""
    draw = Draw(dtype, seed)
    norm = draw.norm(k) if bn else [None] * 4
    y = draw.normalised(norm, n, k, height, columns) if bn else draw.apart(n, k, height, columns)
    size = (n, width, _strided(height, stride), _strided(columns, stride))
    out = draw.apart(*size).relu() if masked else None
    dout = draw.activation(*size)
    pivot = draw.normal(k, scale=0.2, shift=0.5)
    gain = draw.weight(width, k).to(dtype)
    mixing = draw.weight(k, k)
    constants = [None, None] if frozen else [(mixing + mixing.t()).to(dtype), draw.normal(k)]
    inputs = [dout, out, y, *norm]
    data_pivot = pivot if dtype == torch.float32 else None
    strides = [stride, stride]
    return [*inputs, pivot, strides], [*inputs, data_pivot, gain, *constants, strides]


def chain_case(
    n, k, width, height, columns, dtype, *, geometry, prologue=False, frozen=False, mask="relu",
    residual=None, mask_by_x=False, wide_weight=True, seed=0,
) -> list:  # fmt: skip
    """Arguments of `chain_backward`: x has k channels, y has `width`."""
    draw = Draw(dtype, seed)
    kernel, stride, padding, dilation = PADDINGS[geometry]
    reach = dilation * (kernel - 1) + 1
    out_size = [(extent + 2 * padding - reach) // stride + 1 for extent in (height, columns)]
    norm = draw.norm(width)
    y = draw.normalised(norm, n, width, *out_size)
    out = draw.apart(n, width, *out_size).relu() if mask == "out" else None
    means = [None, None] if frozen else [draw.normal(width, scale=0.1) for _ in range(2)]
    pro = draw.norm(k) if prologue else [None] * 4
    sizes = (n, k, height, columns)
    x = draw.normalised(pro, *sizes) if prologue else draw.apart(*sizes)
    weight = draw.weight(width, k, kernel, kernel)
    weight = weight if wide_weight else weight.to(dtype)
    passed: list = [None, None]
    residual_stride = 2 if residual in ("strided", "wider") else 1
    if residual is not None:
        channels = k + 5 if residual == "wider" else k
        extents = (_strided(height, residual_stride), _strided(columns, residual_stride))
        passed[0] = draw.activation(n, channels, *extents)
        if residual != "identity":
            passed[1] = draw.apart(n, channels, *extents)
    return [
        draw.activation(n, width, *out_size), out, y, *norm, *means, mask == "relu",
        x, weight, [stride] * 2, [padding] * 2, [dilation] * 2, 1, *pro,
        *passed, [residual_stride] * 2, mask_by_x, True, True,
    ]  # fmt: skip


def pool_case(
    n, k, height, columns, dtype, window, *, frozen=False, seed=0
) -> tuple[list, list, list]:  # fmt: skip
    """Arguments of `bn_max_pool`, its reductions and its gradient."""
    draw = Draw(dtype, seed)
    kernel, stride, padding = window
    norm = draw.norm(k)
    y = draw.normalised(norm, n, k, height, columns)
    geometry = [[kernel] * 2, [stride] * 2, [padding] * 2]
    out_size = [(extent + 2 * padding - kernel) // stride + 1 for extent in (height, columns)]
    dout = draw.activation(n, k, *out_size)
    places = torch.randint(kernel * kernel, dout.shape, generator=draw.generator)
    if padding:  # the middle of a window lies inside in any case
        inside = torch.zeros(dout.shape, dtype=torch.bool)
        inside[:, :, 1 : out_size[0] - 1, 1 : out_size[1] - 1] = True
        places = torch.where(inside, places, torch.full_like(places, kernel * kernel // 2))
    index = places.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    means = [None, None] if frozen else [draw.normal(k, scale=0.1) for _ in range(2)]
    return (
        [y, *norm, *geometry],
        [dout, index, y, *norm, *geometry],
        [dout, index, y, *norm, *means, *geometry],
    )
