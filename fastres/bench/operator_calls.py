"""The launch operators that a training step or inference really calls, recorded on fake tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from ..backends.ops import SCHEMAS
from ..inference.convolution import Convolution
from ..inference.graph import lower
from . import cases
from .workload import Batch, Step

_LARGE = 224  # pixels of an ImageNet image, 32 of a CIFAR one


@dataclass(frozen=True)
class TensorSpec:
    """Size, strides and dtype of a tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor) -> TensorSpec:
        return cls(tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype)

    @property
    def nbytes(self) -> int:
        count = self.dtype.itemsize
        for extent in self.size:
            count *= extent
        return count

    def __str__(self) -> str:
        return "x".join(map(str, self.size))


@dataclass(frozen=True)
class Call:
    """One call of a launch operator: its name, and its arguments with tensors as `TensorSpec`."""

    operator: str
    arguments: tuple[Any, ...]

    @property
    def schema(self):
        """torch's schema of the operator."""
        return getattr(torch.ops.fastres, self.operator).default._schema

    def named(self) -> Iterator[tuple[str, Any]]:
        """(argument's name, value) in order."""
        for argument, value in zip(self.schema.arguments, self.arguments, strict=True):
            yield argument.name, value

    @property
    def dtype(self) -> torch.dtype:
        """Of the activations."""
        first: TensorSpec = self.arguments[0]
        return first.dtype

    @property
    def nbytes(self) -> int:
        """Of the tensors that go in."""
        return sum(value.nbytes for value in self.arguments if isinstance(value, TensorSpec))

    def __str__(self) -> str:
        """The operator with its large tensors and its numbers, as a table shows it."""
        words = [self.operator]
        for name, value in self.named():
            if isinstance(value, TensorSpec):
                if len(value.size) == 4:
                    words.append(f"{name} {value}")
            elif name in ("stride", "shortcut_stride", "residual_stride") and value not in (
                1,
                (1, 1),
            ):
                words.append(f"{name} {value if isinstance(value, int) else value[0]}")
        return " ".join(words)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "fastres":
            name = func._schema.name.partition("::")[2]
            if name in SCHEMAS:
                self.calls.append(Call(name, tuple(_frozen(value) for value in args)))
        return func(*args, **(kwargs or {}))


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return TensorSpec.of(value)
    return tuple(value) if isinstance(value, list) else value


def record_step(
    network: str, batch: int, dtype: str = "fp32", image_size: int | None = None
) -> Counter[Call]:
    """How often each launch operator is called in a training step of the fused network.

    Forward and backward run on fake tensors, so that no batch is too large; whole blocks and
    operators are chosen alike on every device.

    Args:
        network: a name of `models.names()` or of `cases.SMALL`.
        dtype: of `cases.DTYPES`; autocast to it, as in training.
        image_size: 224 for a network of 1000 classes, else 32, unless given.

    Raises:
        ValueError: there is no such network.
    """
    workload = cases.network(network, batch, image_size or _image_size(network), dtype)
    with FakeTensorMode():
        module = with_channels_last(workload.build(True))
        images = torch.empty(workload.shapes[0]).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(batch, dtype=torch.int64)
        step = Step(workload, module, [Batch((images,), labels)])
        with _Recorder() as recorder:
            step(0)
    return Counter(recorder.calls)


def record_inference(
    network: str, batch: int, dtype: str = "fp32", image_size: int | None = None
) -> Counter[Call]:
    """How often each launch operator is called in a forward pass of the optimised network.

    Every convolution is one call of `conv_bias_act`, whoever runs it; arguments and errors as
    `record_step`'s.
    """
    workload = cases.network(network, batch, image_size or _image_size(network), dtype)
    with FakeTensorMode(), torch.no_grad():
        module = lower(workload.build(False).eval(), workload.autocast)
        for child in module.modules():
            if isinstance(child, Convolution):
                child.forward = child.launched
        images = torch.empty(workload.shapes[0], dtype=workload.autocast)
        # the head is in fp32 still
        amp = torch.autocast("cpu", workload.autocast) if workload.autocast else nullcontext()
        with _Recorder() as recorder, amp:
            module(images.contiguous(memory_format=torch.channels_last))
    return Counter(recorder.calls)


def _image_size(network: str) -> int:
    """Pixels of the images that a network is for."""
    return _LARGE if cases.network(network, 1, _LARGE).classes == 1000 else 32


def with_channels_last(module: nn.Module) -> nn.Module:
    """`module.to(memory_format=torch.channels_last)`, which fake parameters do not have."""
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            if parameter.dim() == 4:
                moved = parameter.detach().contiguous(memory_format=torch.channels_last)
                setattr(child, name, nn.Parameter(moved))
    return module


def is_convolution_weight(name: str, spec: TensorSpec) -> bool:
    """Whether an argument is a convolution's weight [C_out, C_in, KH, KW]."""
    return name.endswith("weight") and len(spec.size) == 4
