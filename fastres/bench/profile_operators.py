"""What a step asks of every operator that it runs: bytes and flops, from the step itself.

An operator is what PyTorch dispatches: a launch operator of fastres, whatever it runs inside, or
one of ATen. Its bytes are those of the tensors that it is given and makes, each counted as
`traffic_model_aten` counts them; what it writes and reads again inside is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count

from .traffic_model import Machine
from .traffic_model_aten import costs, nbytes, storage
from .traffic_model_recorder import block_of, is_composite

# operators that are given a tensor for its dtype and device alone; by position
_NOT_READ = {
    "fastres::moment_statistics": 0,
    "fastres::moment_gradients": 0,
    "fastres::moment_batch_gradients": 0,
}
# convolutions with an epilogue, of oneDNN and of cuDNN
_CONVOLUTIONS = ("mkldnn::_convolution", "aten::cudnn_convolution_")
OPTIMIZER, NETWORK = "optimizer", "network"
_OPTIMIZERS = ("aten::_fused_sgd", "aten::_amp_")


@dataclass(frozen=True)
class Call:
    """One operator of the step, in the order in which they run.

    Attributes:
        name: as the profiler has it, "aten::addmm".
        part: of the network whose parameters or activations it works on: "stem", "layer1", "head"
            or "optimizer"; "network" where that cannot be told.
        bytes, flops: zero for a view, or for an operator that only makes room.
    """

    name: str
    part: str
    bytes: int
    flops: int

    def floor(self, machine: Machine) -> float:
        """The least seconds it takes."""
        return max(self.bytes / machine.bandwidth, self.flops / machine.matrix_rate)


class Calls(TorchDispatchMode):
    """Everything that runs inside the `with`, as `Call`s.

    Args:
        module: whose parameters tell the parts of the network apart.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._parts: list[str] = []
        # by storage: (held, so that its address is not used again; part; whether of parameters)
        self._owner: dict[int, tuple[object, int, bool]] = {}
        before: list[str] = []
        for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
            block = block_of(name, before)
            before.append(block)
            part = block.partition(".")[0]
            if part not in self._parts:
                self._parts.append(part)
            self._own(tensor, self._parts.index(part), True)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if func.namespace in ("prim", "prims", "profiler"):
            return out
        name = func._schema.name
        given = list(_tensors((args, kwargs)))
        part, of_parameters = self._part(given)
        where = OPTIMIZER if name.startswith(_OPTIMIZERS) else self._name(part)
        self.calls.append(Call(name, where, *_cost(func, args, kwargs, out)))
        for tensor in _tensors(out):
            self._own(tensor, part, of_parameters and len(given) == 1)
        return out

    def _name(self, part: int | None) -> str:
        return NETWORK if part is None else self._parts[part]

    def _own(self, tensor: Tensor, part: int | None, parameter: bool) -> None:
        if part is None or tensor.is_mkldnn:
            return
        address = storage(tensor)
        if address not in self._owner or not self._owner[address][2]:
            self._owner[address] = (tensor.untyped_storage(), part, parameter)

    def _part(self, given: list[Tensor]) -> tuple[int | None, bool]:
        addresses = [storage(tensor) for tensor in given if not tensor.is_mkldnn]
        owners = [self._owner[address] for address in addresses if address in self._owner]
        of_parameters = [part for _, part, parameter in owners if parameter]
        if of_parameters:
            return of_parameters[0], True
        return (owners[0][1], False) if owners else (None, False)


def _cost(func, args: tuple, kwargs: dict, out: object) -> tuple[int, int]:
    """Bytes and flops of a call."""
    name = func._schema.name
    if name.startswith(_CONVOLUTIONS):
        return _convolution(func, args, out)
    found = list(costs(func, args, kwargs, out))
    moved = sum(cost.read + cost.written for cost in found)
    if name in _NOT_READ:
        moved -= nbytes(args[_NOT_READ[name]])
    return moved, sum(cost.flops for cost in found)


def _convolution(func, args: tuple, out: Tensor) -> tuple[int, int]:
    """Of a convolution with an epilogue; oneDNN's weights have no strides."""
    names = [argument.name for argument in func._schema.arguments]
    weight = next(args[names.index(name)] for name in ("W", "weight") if name in names)
    moved = sum(t.numel() * t.element_size() for t in (*_tensors(args), out))
    return moved, conv_flop_count(args[0].shape, weight.shape, out.shape)


def operators_of(run: Callable[[], object], module: nn.Module) -> list[Call]:
    """The operators that `run` runs, as `Call`s."""
    calls = Calls(module)
    with calls:
        run()
    return calls.calls


def _tensors(value: object) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
