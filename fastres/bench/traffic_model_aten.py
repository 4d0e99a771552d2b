"""What the ATen operators of a training step read and write, and how often.

By default an operator reads each tensor it is given once and writes each tensor it makes once; a
view moves nothing, an operator in place reads and writes. The exceptions are declared here. They
describe PyTorch's CUDA kernels and cuDNN, whatever device the shapes were recorded on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


class Cost(NamedTuple):
    """Name, bytes read, bytes written and flops of a kernel behind an operator."""

    name: str
    read: int
    written: int
    flops: int = 0


# operators that make a tensor without filling it, or change one's shape
_FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "as_strided_"}
# of a like-this operator the argument gives shape and dtype only
_FILLED = {"zeros_like", "ones_like", "full_like", "rand_like", "new_zeros", "new_ones", "new_full"}
# how often an operator goes through its arguments, where that is not once each; by position.
# Batch normalisation of a batch larger than the caches: one pass over x for the statistics, one to
# normalise; backward one over dout and x for the two sums, one for dx. The gradient of a max
# pooling is scattered by the indices and never looks at x. Weights updated in place are read, the
# gradients an optimiser is given are not written.
_TWICE_X = {0: 2}
_TWICE_DOUT_AND_X = {0: 2, 1: 2}
_PASSES: dict[str, dict[int, int]] = {
    "native_batch_norm": _TWICE_X,
    "_native_batch_norm_legit": _TWICE_X,
    "_batch_norm_with_update": _TWICE_X,
    "cudnn_batch_norm": _TWICE_X,
    "native_batch_norm_backward": _TWICE_DOUT_AND_X,
    "batch_norm_backward": _TWICE_DOUT_AND_X,
    "cudnn_batch_norm_backward": _TWICE_DOUT_AND_X,
    "max_pool2d_with_indices_backward": {1: 0},
    "copy_": {0: 0},
    "zero_": {0: 0},
    "fill_": {0: 0},
}
# the argument that says whether batch statistics are used: without them one pass is enough
_TRAINING = {
    "native_batch_norm": 5,
    "_native_batch_norm_legit": 5,
    "cudnn_batch_norm": 5,
    "native_batch_norm_backward": 7,
    "batch_norm_backward": 7,
}
# written arguments that the schema calls mutable for another reason
_NOT_WRITTEN = {"_fused_sgd_": {1}}


def nbytes(tensor: Tensor) -> int:
    """Bytes of the elements of a tensor that lie at different places."""
    distinct = math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )
    return distinct * tensor.element_size() if tensor.numel() else 0


def storage(tensor: Tensor) -> int:
    """Equal for two tensors that share their memory, while both are alive."""
    return tensor.untyped_storage()._cdata


def costs(func, args: tuple, kwargs: dict[str, Any], out: Any) -> Iterator[Cost]:
    """The kernels behind a call of an ATen operator; none for a view or an empty tensor."""
    special = _SPECIAL.get(func.overloadpacket)
    found = special(args, out) if special else _ordinary(func, args, kwargs, out)
    for cost in found:
        if cost.read or cost.written or cost.flops:
            yield cost


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _ordinary(func, args: tuple, kwargs: dict[str, Any], out: Any) -> Iterator[Cost]:
    name = func._schema.name.partition("::")[2]
    if name in _FREE or _is_view(func):
        return
    passes = _PASSES.get(name, {})
    if name in _TRAINING and not args[_TRAINING[name]]:
        passes = {}
    read = written = 0
    given: set[int] = set()
    arguments = func._schema.arguments
    values = [*args, *(kwargs[a.name] for a in arguments[len(args) :] if a.name in kwargs)]
    for position, (argument, value) in enumerate(zip(arguments, values, strict=False)):
        tensors = _tensors(value)
        here = sum(map(nbytes, tensors))
        given.update(map(storage, tensors))
        if name not in _FILLED:
            read += passes.get(position, 1) * here
        mutable = argument.alias_info is not None and argument.alias_info.is_write
        if mutable and position not in _NOT_WRITTEN.get(name, ()):
            written += here
    written += sum(nbytes(t) for t in _tensors(out) if storage(t) not in given)
    yield Cost(name, read, written, _flops(func.overloadpacket, args, out))


def _is_view(func) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(
        value.alias_info is not None and not value.alias_info.is_write for value in returns
    )


def _flops(packet, args: tuple, out: Any) -> int:
    formula = flop_registry.get(packet)
    return 0 if formula is None else int(formula(*args, out_val=out))


def _pixels_read(x: Tensor, weight: Tensor, stride: list[int], out: Tensor) -> int:
    """Bytes a convolution reads of x: a 1x1 kernel with a stride reads only the pixels it meets."""
    if math.prod(weight.shape[2:]) == 1 and math.prod(stride) > 1:
        met = x.shape[0] * x.shape[1] * math.prod(out.shape[2:])
        return met * x.element_size()
    return nbytes(x)


def _convolution(args: tuple, out: Tensor) -> Iterator[Cost]:
    x, weight, bias, stride = args[:4]
    read = _pixels_read(x, weight, stride, out) + nbytes(weight)
    read += 0 if bias is None else nbytes(bias)
    yield Cost("convolution", read, nbytes(out), _flops(aten.convolution, args, out))


def _convolution_backward(args: tuple, out: Any) -> Iterator[Cost]:
    """Two kernels, each of which reads dout: one for dx, one for dw.

    Each multiplies as much as the forward, whose formula counts groups right for both.
    """
    dout, x, weight, _, stride, *_, mask = args
    flops = _flops(aten.convolution, (x, weight, None, stride, None, None, False), dout)
    dx, dw, _ = out
    if mask[0]:
        read = nbytes(dout) + nbytes(weight)
        yield Cost("convolution_backward dx", read, nbytes(dx), flops)
    if mask[1]:
        read = nbytes(dout) + _pixels_read(x, weight, stride, dout)
        yield Cost("convolution_backward dw", read, nbytes(dw), flops)


_SPECIAL: dict[Any, Callable[[tuple, Any], Iterator[Cost]]] = {
    aten.convolution: _convolution,
    aten.convolution_backward: _convolution_backward,
}
