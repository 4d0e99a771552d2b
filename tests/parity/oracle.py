"""What the kernels must equal: joins and convolutions in plain PyTorch, differentiated by autograd.

The rule of parity: |ours - fp64| <= 2 * |torch in our dtype - fp64| + a small absolute term, for
every output and gradient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-5
# half a unit in the last place of an output near one, and what sums of a few hundred lose
ATOL = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
# a pre-activation this close to zero may pass the ReLU in one dtype and not in another
UNSURE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}

KINDS = ("none", "identity", "bn", "pad")


@dataclass
class Join:
    """Inputs of relu(bn(y) + shortcut): activations in the tested dtype, parameters in fp32."""

    kind: str
    relu: bool
    frozen: bool
    stride: int
    y: Tensor
    dout: Tensor
    weight: Tensor
    bias: Tensor
    running: tuple[Tensor, Tensor]
    shortcut: Tensor | None
    s_weight: Tensor | None
    s_bias: Tensor | None
    s_running: tuple[Tensor, Tensor] | None


def make_join(
    kind: str, dtype: torch.dtype, channels: int, *, images: int = 2,
    size: tuple[int, int] = (5, 7), relu: bool = True, frozen: bool = False, stride: int = 2,
    s_channels: int | None = None, device: str = "cpu", seed: int = 0,
) -> Join:  # fmt: skip
    """A random join whose gradient is zero where the ReLU's decision depends on rounding."""
    random = torch.Generator().manual_seed(seed)

    def draw(*sizes: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(sizes, generator=random, dtype=torch.float64) * scale + shift

    def activation(*sizes: int) -> Tensor:
        return draw(*sizes).to(dtype).contiguous(memory_format=torch.channels_last).to(device)

    def parameter(shift: float) -> Tensor:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        return draw(channels, scale=0.3, shift=shift).to(wide).to(device)

    shape = (images, channels, *size)
    shortcut = None
    if kind == "pad":
        narrow = max(channels // 2, 1) if s_channels is None else s_channels
        shortcut = activation(images, narrow, *(stride * (extent - 1) + 1 for extent in size))
    elif kind != "none":
        shortcut = activation(*shape)
    branch = kind == "bn"
    join = Join(
        kind, relu, frozen, stride if kind == "pad" else 1, activation(*shape), activation(*shape),
        parameter(1.0), parameter(0.0), (parameter(0.0), parameter(1.0).abs()), shortcut,
        parameter(1.0) if branch else None, parameter(0.0) if branch else None,
        (parameter(0.0), parameter(1.0).abs()) if branch else None,
    )  # fmt: skip
    if relu and images:
        value = run_join(join, torch.float64, relu=False)["out"]
        join.dout[value.abs() < UNSURE[dtype]] = 0
    return join


def run_join(join: Join, dtype: torch.dtype, relu: bool | None = None) -> dict[str, Tensor]:
    """The output and every gradient, computed in `dtype` by PyTorch and autograd."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def leaf(value: Tensor | None, to: torch.dtype) -> Tensor | None:
        return None if value is None else value.detach().to(to).requires_grad_()

    def bn(value: Tensor, weight: Tensor, bias: Tensor, running) -> Tensor:
        mean, var = (None, None) if not join.frozen else (r.to(wide) for r in running)
        return F.batch_norm(value, mean, var, weight, bias, training=not join.frozen, eps=EPS)

    y, shortcut = leaf(join.y, dtype), leaf(join.shortcut, dtype)
    weight, bias = leaf(join.weight, wide), leaf(join.bias, wide)
    s_weight, s_bias = leaf(join.s_weight, wide), leaf(join.s_bias, wide)
    out = bn(y, weight, bias, join.running)
    if join.kind == "bn":
        out = out + bn(shortcut, s_weight, s_bias, join.s_running)
    elif join.kind == "identity":
        out = out + shortcut
    elif join.kind == "pad":
        taken = shortcut[:, :, :: join.stride, :: join.stride]
        out = out + F.pad(taken, (0, 0, 0, 0, 0, y.shape[1] - shortcut.shape[1]))
    if join.relu if relu is None else relu:
        out = out.relu()
    leaves = {
        "dy": y, "dweight": weight, "dbias": bias, "dshortcut": shortcut,
        "ds_weight": s_weight, "ds_bias": s_bias,
    }  # fmt: skip
    leaves = {name: value for name, value in leaves.items() if value is not None}
    gradients = torch.autograd.grad(out, list(leaves.values()), join.dout.to(dtype))
    return {"out": out.detach()} | dict(zip(leaves, gradients, strict=True))


def launch_join(join: Join, operators) -> dict[str, Tensor]:
    """The same through launch operators: a backend module or torch.ops.fastres."""
    mean, var = join.running if join.frozen else operators.bn_stats(join.y)
    invstd = (var + EPS).rsqrt()
    s_mean = s_invstd = None
    if join.kind == "bn":
        s_mean, s_var = join.s_running if join.frozen else operators.bn_stats(join.shortcut)
        s_invstd = (s_var + EPS).rsqrt()
    affine = (join.weight, join.bias)
    out = operators.bn_apply(
        join.y, mean, invstd, *affine, join.shortcut, s_mean, s_invstd, join.s_weight, join.s_bias,
        join.stride, join.relu,
    )  # fmt: skip
    kept = out if join.relu and join.kind != "none" else None
    branch = join.shortcut if join.kind == "bn" else None
    sums = operators.bn_backward_reduce(
        join.dout, kept, join.y, mean, invstd, *affine, branch, s_mean, s_invstd, join.relu
    )
    count = max(join.y.numel() // join.y.shape[1], 1)
    means: list[Tensor | None] = [None if join.frozen else total / count for total in sums]
    if join.kind != "bn":
        means[2] = None
    size = [] if join.shortcut is None else list(join.shortcut.shape)
    dy, dshortcut = operators.bn_backward(
        join.dout, kept, join.y, mean, invstd, *affine, means[0], means[1], branch, s_mean,
        s_invstd, join.s_weight, means[2], size, join.stride, join.relu,
    )  # fmt: skip
    results = {"out": out, "dy": dy, "dweight": sums[1], "dbias": sums[0]}
    if join.shortcut is not None:
        results["dshortcut"] = dshortcut
    if join.kind == "bn":
        results |= {"ds_weight": sums[2], "ds_bias": sums[0]}
    return results


def convolve(
    x: Tensor, weight: Tensor, stride: int, padding: int, dilation: int, prologue, dtype
) -> dict[str, Tensor]:
    """Convolution of x, or of relu((x - mean) * invstd * weight + bias), with y's statistics."""
    x, weight = x.to(dtype), weight.to(dtype)
    if prologue is not None:
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        mean, invstd, gamma, beta = (p.to(wide).view(1, -1, 1, 1) for p in prologue)
        x = ((x.to(wide) - mean) * (invstd * gamma) + beta).relu().to(dtype)
    y = F.conv2d(x, weight, None, stride, padding, dilation)
    if not y.numel():
        return {"y": y}
    var, mean = torch.var_mean(y.double(), (0, 2, 3), correction=0)
    return {"y": y, "mean": mean, "var": var}


def assert_parity(
    ours: dict[str, Tensor], torchs: dict[str, Tensor], exact: dict[str, Tensor], atol: float
) -> None:
    """The rule of parity for every named result; a NaN of ours fails."""
    assert ours.keys() == exact.keys()
    for name, value in ours.items():
        assert value.shape == exact[name].shape, name
        if not value.numel():
            continue
        error = (value.double() - exact[name]).abs().max().item()
        allowed = 2 * (torchs[name].double() - exact[name]).abs().max().item()
        scale = max(exact[name].abs().max().item(), 1.0)
        assert error <= allowed + atol * scale, f"{name}: error {error}, torch's twice {allowed}"


class Poison:
    """Stands in for torch.empty: memory full of NaN, with margins that must stay untouched.

    Bytes, which hold no NaN, are full of their largest value.
    """

    MARGIN = 64

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []

    def empty(self, size, *, dtype, device, memory_format=torch.contiguous_format) -> Tensor:
        """A view into the middle of a buffer of NaN."""
        count = torch.Size(size).numel()
        value = 255 if dtype == torch.uint8 else torch.nan
        buffer = torch.full((count + 2 * self.MARGIN,), value, dtype=dtype, device=device)
        self._buffers.append(buffer)
        inner = buffer[self.MARGIN : self.MARGIN + count]
        if memory_format == torch.channels_last:
            n, c, h, w = size
            return inner.view(n, h, w, c).permute(0, 3, 1, 2)
        return inner.view(size)

    def check(self) -> None:
        """Raise if a margin was written to."""
        for buffer in self._buffers:
            margins = torch.cat([buffer[: self.MARGIN], buffer[-self.MARGIN :]])
            untouched = margins == 255 if margins.dtype == torch.uint8 else margins.isnan()
            assert untouched.all(), "a kernel wrote outside its output"
