"""Tensors for a recorded operator call, and its numbers in fp64 to judge a kernel by."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import reference
from .operator_calls import Call, TensorSpec, is_convolution_weight

# half a unit in the last place of an output near one, and what sums of a few hundred lose
_ROUNDING = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
_POSITIVE = ("invstd", "scale")
_RECTIFIED = ("out", "residual_mask", "shortcut")


def make_arguments(call: Call, device: torch.device, seed: int = 0) -> tuple[Any, ...]:
    """Random arguments of the call's shapes, as a training step would have them.

    Inverse deviations and scales are positive, weights keep the variance, what is an activation
    after a ReLU has zeros, and the index of a pooling is that of a real one.
    """
    generator = torch.Generator(device).manual_seed(seed)
    named = dict(call.named())
    return tuple(
        _make(name, value, named, generator) if isinstance(value, TensorSpec) else _thawed(value)
        for name, value in named.items()
    )


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _make(name: str, spec: TensorSpec, named: dict[str, Any], generator: torch.Generator) -> Tensor:
    device = generator.device
    if name == "index":
        return _pool_index(spec, named, generator)
    value = torch.randn(spec.size, generator=generator, device=device)
    if is_convolution_weight(name, spec):
        value *= prod(spec.size[1:]) ** -0.5
    elif name == "gain":  # [N, K] of a product over N, as mixing's [K, K] is over K
        value *= spec.size[0] ** -0.5
    elif name == "mixing":
        value = (value + value.mT) * (0.01 * spec.size[0] ** -0.5)
    elif name.endswith(_POSITIVE):
        value = value.abs() + 0.5
    elif len(spec.size) == 1:
        value = value * 0.1 + (1.0 if name.endswith("weight") else 0.0)
    elif name in _RECTIFIED:
        value = value.relu_()
    return _placed(value.to(spec.dtype), spec)


def _placed(value: Tensor, spec: TensorSpec) -> Tensor:
    """`value` with the strides of `spec`, or channels_last where these are not dense."""
    if not _is_dense(spec):
        return value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
    target = torch.empty_strided(spec.size, spec.stride, dtype=spec.dtype, device=value.device)
    return target.copy_(value)


def _is_dense(spec: TensorSpec) -> bool:
    """Whether the strides step through memory without gaps and never meet a place twice."""
    expected = 1
    steps = zip(spec.stride, spec.size, strict=True)
    for stride, extent in sorted(step for step in steps if step[1] > 1):
        if stride != expected:
            return False
        expected *= extent
    return True


def _pool_index(spec: TensorSpec, named: dict[str, Any], generator: torch.Generator) -> Tensor:
    """Places in the windows of a max pooling of random values whose output is like `spec`."""
    kernel, stride, padding = (named[name] for name in ("kernel_size", "stride", "padding"))
    size = named["size"] if "size" in named else named["y"].size
    x = torch.randn(tuple(size), generator=generator, device=generator.device)
    _, flat = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    places = []
    for axis, extent in enumerate(spec.size[2:]):
        position = flat // size[3] if axis == 0 else flat % size[3]
        first = torch.arange(extent, device=flat.device) * stride[axis] - padding[axis]
        places.append(position - (first[:, None] if axis == 0 else first[None, :]))
    return _placed((places[0] * kernel[1] + places[1]).to(spec.dtype), spec)


class Judge:
    """Decides whether an operator's results are right, for one set of arguments.

    For every output, |ours - fp64| <= 2 * |reference in the same dtype - fp64| + rounding, in the
    norm over all elements and at the worst element; of whole numbers, the share that differs.
    """

    def __init__(self, call: Call, arguments: Sequence[Any]) -> None:
        operator = getattr(reference, call.operator)
        self._rounding = _ROUNDING[call.dtype]
        self._exact = _results(operator(*_in_fp64(call, arguments)))
        self._allowed = [
            2 * _error(theirs, exact)
            for theirs, exact in zip(_results(operator(*arguments)), self._exact, strict=True)
        ]

    def problem(self, results: Any) -> str | None:
        """What is wrong with an operator's results, or None."""
        ours = _results(results)
        if len(ours) != len(self._exact):
            return f"{len(self._exact)} outputs expected, got {len(ours)}"
        for number, (mine, exact, allowed) in enumerate(
            zip(ours, self._exact, self._allowed, strict=True)
        ):
            if mine.shape != exact.shape:
                return f"output {number} must be {tuple(exact.shape)}, got {tuple(mine.shape)}"
            errors = _error(mine, exact)
            # written so that a NaN is too large
            if not bool((errors <= allowed + self._rounding).all()):
                typical, worst = errors.tolist()
                return (
                    f"output {number} is wrong: relative error {typical:.2g}, at worst {worst:.2g} "
                    f"(allowed {float(allowed[0]):.2g}, {float(allowed[1]):.2g})"
                )
        return None


def _results(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def _in_fp64(call: Call, arguments: Sequence[Any]) -> list[Any]:
    """The arguments in fp64; a convolution's weight is first rounded to the activations' dtype."""
    wide = []
    for (name, spec), value in zip(call.named(), arguments, strict=True):
        if isinstance(value, Tensor) and value.is_floating_point():
            if is_convolution_weight(name, spec):
                value = value.to(call.dtype)
            value = value.double()
        wide.append(value)
    return wide


def _error(value: Tensor, exact: Tensor) -> Tensor:
    """[2]: distance over the norm of `exact`, and the largest over its largest element."""
    if not exact.numel():
        return torch.zeros(2, dtype=torch.float64, device=exact.device)
    if not exact.is_floating_point():
        differing = (value != exact).double().mean()
        return torch.stack([differing, differing])
    distance = value.double() - exact
    tiny = torch.finfo(torch.float64).tiny
    return torch.stack(
        [
            torch.linalg.vector_norm(distance) / (torch.linalg.vector_norm(exact) + tiny),
            distance.abs().max() / exact.abs().max().clamp(min=1.0),
        ]
    )
