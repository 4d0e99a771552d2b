"""Records the operators of a step that really runs, on fake, meta or real tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .traffic_model import BACKWARD, FORWARD, OPTIMIZER, Operation
from .traffic_model_aten import costs, storage

# operators that compute nothing
_SILENT = {"prim", "prims", "profiler", "c10d"}
STEM, HEAD = "stem", "head"


class Recorder(TorchDispatchMode):
    """Everything that runs inside the `with`, as `Operation`s.

    An ATen operator is recorded from its arguments. A launch operator of fastres is run by the
    Triton backend, whatever its tensors are, and what is recorded are the kernels that it launches
    and the ATen operators beside them.

    An operator belongs to the block whose parameters it is given, or else to the one that made its
    activations: where two meet, the later one in the forward and the earlier one in the backward.

    Args:
        model: whose parameters tell the blocks apart.
        make: run the kernels too; they then need real tensors on a GPU or Triton's interpreter.
        back_to_back: False runs what `expand_reduce` does as `expand` and `conv_stats`.
    """

    def __init__(self, model: nn.Module, *, make: bool = False, back_to_back: bool = True) -> None:
        super().__init__()
        # imported on first use: `import fastres.bench` must not import Triton
        self._backend = import_module("fastres.backends.triton")
        self._launch = import_module("fastres.kernels.launch")
        self._make = make
        self._back_to_back = back_to_back
        self._phase = FORWARD
        self._pending: list[list] = []
        self.operations: list[Operation] = []
        # bytes that `keep` was given, by the block that made them
        self.saved: dict[str, int] = {}
        self._kept: set[int] = set()
        self.blocks: list[str] = []
        # by storage: (storage, held so that its address is not used again; block; parameter?)
        self._owner: dict[int, tuple[Any, int, bool]] = {}
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            block = block_of(name, self.blocks)
            if block not in self.blocks:
                self.blocks.append(block)
            self._own(tensor, self.blocks.index(block), True)
        # what is there anyway is not kept for the backward
        self._kept.update(self._owner)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """The phase of what is recorded inside the `with`."""
        before, self._phase = self._phase, name
        try:
            yield
        finally:
            self._phase = before

    def keep(self, tensor: Tensor) -> Tensor:
        """A pack hook for saved tensors: counts each storage once, parameters excepted."""
        address = storage(tensor)
        if address in self._owner and address not in self._kept:
            self._kept.add(address)
            block = self.blocks[self._owner[address][1]]
            size = tensor.untyped_storage().nbytes()
            self.saved[block] = self.saved.get(block, 0) + size
        return tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace in _SILENT:
            return func(*args, **kwargs)
        if func.namespace == "fastres":
            operator = self._operator(func._schema.name.partition("::")[2])
            with self, self._launch.recording(make=self._make) as launches:
                self._pending.append(launches)
                try:
                    out = operator(*args, **kwargs)
                    self._take_launches()
                finally:
                    self._pending.pop()
            return out
        self._take_launches()
        if is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        given = _tensors((args, kwargs))
        block, of_parameters = self._block(given)
        for cost in costs(func, args, kwargs, out):
            self._add(cost.name, "aten", block, cost.read, cost.written, cost.flops)
        for tensor in _tensors(out):
            # a cast or a view of a parameter stands for it
            self._own(tensor, block, of_parameters and len(given) == 1)
        return out

    def _operator(self, name: str) -> Callable:
        if name == "expand_reduce" and not self._back_to_back:
            return self._one_after_the_other
        return getattr(self._backend, name)

    def _one_after_the_other(self, *args):
        *expansion, weight = args
        out = self._backend.expand(*expansion)
        plain = ((1, 1), (0, 0), (1, 1), 1, None, None, None, None, True)
        return out, *self._backend.conv_stats(out, weight, *plain)

    def _take_launches(self) -> None:
        """Record what the backend has launched since the last look, in its place in the order."""
        if not self._pending:
            return
        launches = self._pending[-1]
        for made in launches:
            tensors = made.tensors()
            read, written = made.bytes_read(), made.bytes_written()
            block, _ = self._block([t for name, t in tensors.items() if name in read])
            name = made.kernel.__name__.removesuffix("_kernel")
            self._add(name, "triton", block, sum(read.values()), sum(written.values()), made.flops)
            for argument in written:
                self._own(tensors[argument], block, False)
        launches.clear()

    def _add(self, name, provider, block: int, read: int, written: int, flops: int) -> None:
        where = self.blocks[block] if self._phase != OPTIMIZER else OPTIMIZER
        self.operations.append(Operation(name, provider, self._phase, where, read, written, flops))

    def _own(self, tensor: Tensor, block: int, parameter: bool) -> None:
        address = storage(tensor)
        if address not in self._owner or not self._owner[address][2]:
            self._owner[address] = (tensor.untyped_storage(), block, parameter)

    def _block(self, given: list[Tensor]) -> tuple[int, bool]:
        owners = [self._owner[storage(t)] for t in given if storage(t) in self._owner]
        of_parameters = [block for _, block, parameter in owners if parameter]
        if of_parameters:
            return min(of_parameters), True
        blocks = [block for _, block, _ in owners]
        if not blocks:
            return 0, False
        return (min if self._phase == BACKWARD else max)(blocks), False


def block_of(parameter: str, before: list[str]) -> str:
    """The block of a parameter by its name: "layer1.0", or the stem before and the head after.

    Args:
        parameter: as `named_parameters` gives it.
        before: the blocks of the parameters that came before.
    """
    first, *rest = parameter.split(".")
    if len(rest) > 1 and rest[0].isdigit():
        return f"{first}.{rest[0]}"
    return HEAD if any("." in block for block in before) else STEM


def is_composite(func) -> bool:
    """Whether it is made of others, like `to`: inside a fastres operator, and in inference mode,
    these arrive as such."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        func.name(), torch._C.DispatchKey.CompositeImplicitAutograd
    )


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
