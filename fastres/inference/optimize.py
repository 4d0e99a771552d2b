"""`optimize`: a trained network for inference, checked against the network it came from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_map

from .. import backends
from .._checks import uncast
from ..interop.fuse import check_unwrapped, unfuse
from .convolution import Convolution
from .graph import lower

# the largest difference of an output relative to the largest value of the output. Measured on
# ResNet-50 after random initialisation: 2e-6 in fp32, 6e-3 in bf16, 1e-3 in fp16.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# of fp32 where products are taken in TF32, by cuDNN on a GPU
TF32_TOLERANCE = 1e-2
_RANDOM_SIZE = 64


class Difference(NamedTuple):
    """How far the outputs are from those of the network as it was.

    `relative` is `absolute` over the largest value of the output.
    """

    absolute: float
    relative: float
    tolerance: float


class Optimized(nn.Module):
    """What `optimize` returns. It is called as the network was, in eval mode for good.

    Attributes:
        difference: of its outputs from the network's, on the example.
        dtype: of its convolutions where it was given; inputs are rounded to it and outputs come
            back in the dtype of the input. None: nothing is converted.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype
        self.difference: Difference | None = None
        self._graph: _Graph | None = None
        self._in_arena: bool | None = None
        super().train(False)

    def forward(self, *args, **kwargs):
        with torch.no_grad():
            if self._graph is not None:
                return self._graph(*args, **kwargs)
            return self._run(*args, **kwargs)

    def train(self, mode: bool = True) -> Optimized:
        """Raises RuntimeError if `mode`: what BN had to train is part of the weights."""
        if mode:
            raise RuntimeError(
                "an optimised network is for inference and stays in eval mode; train the network "
                "that it was made from"
            )
        return super().train(False)

    def _run(self, *args, **kwargs):
        given = _tensors((args, kwargs))
        device = given[0].device.type if given else "cpu"
        if self.dtype is None:
            with uncast(device), self._arena(device):
                return self.module(*args, **kwargs)
        back = next((t.dtype for t in given if t.is_floating_point()), self.dtype)
        with uncast(device), self._arena(device):
            args, kwargs = tree_map(lambda t: _cast(t, self.dtype), (args, kwargs))
            return tree_map(lambda t: _cast(t, back), self.module(*args, **kwargs))

    def _arena(self, device: str):
        """Large tensors from the native operators' memory, where a page is faulted in once."""
        if device != "cpu":
            return nullcontext()
        if self._in_arena is None:
            native = backends.chosen("cpu", torch.float32) == "native"
            self._in_arena = native and hasattr(torch.ops.fastres_native, "pool_enter")
        return _pooled() if self._in_arena else nullcontext()

    def _apply(self, fn, recurse: bool = True):
        if self._graph is not None:
            raise RuntimeError(
                "an optimised network with a CUDA graph cannot be moved or converted: the graph "
                "holds the addresses of its weights"
            )
        return super()._apply(fn, recurse)

    def _capture(self, args: tuple) -> None:
        self._graph = _Graph(self._run, args)

    def __getstate__(self):
        if self._graph is not None:
            raise TypeError("an optimised network with a CUDA graph cannot be copied or pickled")
        return {**self.__dict__, "_in_arena": None}


@contextmanager
def _pooled() -> Iterator[None]:
    torch.ops.fastres_native.pool_enter()
    try:
        yield
    finally:
        torch.ops.fastres_native.pool_leave()


class _Graph:
    """A forward pass as a CUDA graph, for inputs like those it was captured with."""

    def __init__(self, run, args: tuple) -> None:
        self._inputs = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, args)
        device = _tensors(args)[0].device
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(3):  # algorithms are chosen and kernels compiled
                    run(*self._inputs)
            torch.cuda.current_stream(device).wait_stream(side)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = run(*self._inputs)

    def __call__(self, *args, **kwargs):
        expected, given = _tensors(self._inputs), _tensors((args, kwargs))
        if kwargs or _signature(args) != _signature(self._inputs):
            raise ValueError(
                f"x must be {', '.join(map(_kind, expected))}, which the CUDA graph was captured "
                f"with, got {', '.join(map(_kind, given)) or 'nothing'}, or other arguments differ"
            )
        for to, tensor in zip(expected, given, strict=True):
            to.copy_(tensor)
        self._graph.replay()
        return tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, self._outputs)


def optimize(
    model: nn.Module,
    example: Any = None,
    *,
    dtype: torch.dtype | None = None,
    cuda_graph: bool = False,
    tolerance: float | None = None,
) -> Optimized:
    """A copy of `model` for inference: fewer passes over memory, no statistics, no gradients.

    BN is folded into the convolution before it, in fp64; bias, shortcut and ReLU run in the
    convolution's epilogue. On a CPU these are oneDNN's post-operations, with weights reordered
    once for each size of input, or in fp32 Winograd's 3x3 convolution; on a GPU the tuned table
    chooses between our Triton kernel and cuDNN's fused convolutions (`cudnn_convolution_relu`,
    `cudnn_convolution_add_relu`); elsewhere PyTorch's separate operators. Pooling and head stay
    PyTorch's.

    Taken apart are fastres's networks, torchvision's and timm's ResNets, fused or not, alone or
    inside another model, and every `nn.Sequential`. Other modules, and all that have a hook, are
    called as they are. Hooks see the calls of the check as well.

    Args:
        model: any module; it stays as it is. Its copy is set to eval mode.
        example: what `model` is called with, a tensor or a tuple of arguments; None takes random
            images [2, C, 64, 64] for the first convolution. Give the size that will be used: the
            weights are prepared for it.
        dtype: float32, bfloat16, float16 or float64 for everything in the copy; None keeps what
            the model has. Inputs are converted, outputs come back in the input's dtype. What a
            CPU has no instructions for runs there without epilogues.
        cuda_graph: capture the forward pass on the example's GPU; inputs must then be like the
            example, and every call returns a copy of the captured outputs.
        tolerance: the largest difference from `model`, relative to the largest value of each
            output: by default 1e-9 in fp64, 1e-4 in fp32 (1e-2 with TF32 on a GPU), 5e-2 in bf16,
            1e-2 in fp16.

    Returns:
        The optimised module; its `difference` says how far it is from `model` on the example.

    Raises:
        TypeError: `model` is not a module or is wrapped, compiled or scripted, or `dtype` is not
            one of these.
        ValueError: there is nothing to optimise, the example does not fit, the outputs differ by
            more than `tolerance`, or `cuda_graph` without a GPU.
    """
    _check(model, dtype, tolerance)
    plain = unfuse(copy.deepcopy(model)).eval()
    amp = getattr(model, "amp", None)  # of a fused model
    if dtype is None and isinstance(amp, torch.dtype):
        dtype = amp
    args, given = _example(plain, example)
    device = _tensors(args)[0].device if _tensors(args) else torch.device("cpu")
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"cuda_graph must be False unless the model is on a GPU, got {device}")
    with torch.no_grad():
        try:
            expected = plain(*args)
        except Exception as error:
            shown = ", ".join(_kind(t) for t in _tensors(args))
            raise ValueError(
                f"example must be what {type(model).__name__} takes, got {shown}: {error}"
            ) from error
    own = _dtype_of(plain)
    found = lower(plain, dtype)
    if not any(isinstance(module, Convolution) for module in found.modules()):
        raise ValueError(
            f"model must hold a convolution that can be optimised, got {type(model).__name__}"
        )
    if dtype is not None:
        found = found.to(dtype)
    optimized = Optimized(found, dtype if dtype != own else None)
    if tolerance is None:
        # an output is as exact as the less exact of the two
        tolerance = max(_tolerance(dtype or own, device), _tolerance(own, device))
    optimized.difference = _verify(optimized, args, expected, tolerance)
    if not given:  # that size may never come again
        for module in found.modules():
            if isinstance(module, Convolution):
                module.release()
    if cuda_graph:
        with torch.no_grad():
            optimized._capture(args)
    return optimized


def _check(model: Any, dtype: Any, tolerance: Any) -> None:
    check_unwrapped(model, "optimised")
    if dtype is not None and dtype not in TOLERANCE:
        raise TypeError(
            f"dtype must be one of {', '.join(map(str, TOLERANCE))} or None, got {dtype!r}"
        )
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance must be at least 0 or None, got {tolerance!r}")


def _example(model: nn.Module, example: Any) -> tuple[tuple, bool]:
    """(the arguments to try, whether they were given)."""
    if example is not None:
        return (example if isinstance(example, tuple) else (example,)), True
    conv = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if conv is None:
        raise ValueError(
            f"model must hold a convolution that can be optimised, got {type(model).__name__}"
        )
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, conv.in_channels, _RANDOM_SIZE, _RANDOM_SIZE, generator=random)
    return (images.to(conv.weight.device, conv.weight.dtype),), False


def _dtype_of(model: nn.Module) -> torch.dtype | None:
    kinds = (m.weight.dtype for m in model.modules() if isinstance(m, nn.Conv2d))
    return next(kinds, None)


def _tolerance(dtype: torch.dtype, device: torch.device) -> float:
    if dtype == torch.float32 and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        return TF32_TOLERANCE
    return TOLERANCE[dtype]


def _verify(optimized: Optimized, args: tuple, expected: Any, tolerance: float) -> Difference:
    try:
        found = optimized(*args)
    except Exception as error:
        raise ValueError(
            f"model must not read modules of a part that is replaced: {type(error).__name__}: "
            f"{error}"
        ) from error
    ours, theirs = _tensors(found), _tensors(expected)
    if [t.shape for t in ours] != [t.shape for t in theirs]:
        raise ValueError(
            f"outputs must have the sizes {[list(t.shape) for t in theirs]}, got "
            f"{[list(t.shape) for t in ours]}"
        )
    absolute = relative = 0.0
    for our, their in zip(ours, theirs, strict=True):
        if their.numel() == 0:
            continue
        apart = (our.double() - their.double()).abs().max().item()
        largest = their.double().abs().max().item()
        absolute = _larger(absolute, apart)
        relative = _larger(relative, apart / largest if largest > 0 else apart)
    if not relative <= tolerance:
        raise ValueError(
            f"outputs must be within tolerance={tolerance:g} of the model's, got a relative "
            f"difference of {relative:.2e} ({absolute:.2e} absolute)"
        )
    return Difference(absolute, relative, tolerance)


def _larger(a: float, b: float) -> float:
    """The larger one, or NaN if either is."""
    return a if a >= b or a != a else b


def _tensors(structure: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(structure)[0] if isinstance(leaf, Tensor)]


def _signature(args: tuple) -> tuple:
    """Equal for arguments that a graph takes one for another: their structure, what kind each
    tensor is, and the other values."""
    leaves, structure = tree_flatten(args)
    return structure, [_kind(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _cast(value: Any, dtype: torch.dtype) -> Any:
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.to(dtype) if floating else value


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"
