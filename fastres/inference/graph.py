"""Networks as programs: traced, with every convolution taking in what follows it.

Only forward functions that we know are looked into: fastres's own, torchvision's and timm's
ResNets and blocks, and any `nn.Sequential`. Every other module, and whatever is hooked, is called
as it stands, and what we know inside it is replaced there.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.module import _has_any_global_hook

from ..interop.fuse import adopters
from ..layers import BasicBlock, Bottleneck, PadShortcut, PlainBlock, Stage
from ..layers.fusion import is_plain, pool_obstacle
from ..models import CifarResNet, ResNet
from .convolution import Convolution
from .fold import folded, is_foldable_convolution, is_foldable_norm
from .program import Program, Source, Step, Value

_OURS = (ResNet, CifarResNet, Stage, BasicBlock, Bottleneck, PlainBlock, PadShortcut)
# what does nothing in eval mode
_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)
_ADD = {operator.add, operator.iadd, torch.add, "add", "add_"}
_ADD_IN_PLACE = {operator.iadd, "add_"}
_RELU = {F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"}
# what tracing raises on a forward that cannot be traced
_UNTRACEABLE = (fx.proxy.TraceError, TypeError, ValueError, RuntimeError, AttributeError, KeyError)


def lower(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """`module`, in eval mode and unfused, with programs in place of what we know.

    It changes where it is not a program itself.

    Args:
        dtype: of the convolutions; None leaves each what it has.
    """
    return _Lowering(dtype).lower(module)


class _Lowering:
    def __init__(self, dtype: torch.dtype | None) -> None:
        self._dtype = dtype
        foreign = (kind for adopter in adopters() for kind in adopter.CLASSES)
        self._known = {*_OURS, *foreign}
        self._done: dict[nn.Module, nn.Module] = {}  # one module may have several places

    def lower(self, module: nn.Module) -> nn.Module:
        if module in self._done:
            return self._done[module]
        # a module that contains itself ends here
        self._done[module] = module
        program = self._program(module)
        found = module if program is None else program
        self._done[module] = found
        # a convolution's parent may read its parameters
        for name, child in list(found.named_children()):
            if not isinstance(child, Convolution):
                found.add_module(name, self.lower(child))
        return found

    def looks_into(self, module: nn.Module) -> bool:
        kind = type(module)
        if kind.forward is not nn.Sequential.forward and kind not in self._known:
            return False
        return is_plain(module, kind) and not _has_any_global_hook()

    def _program(self, module: nn.Module) -> Program | None:
        if not self.looks_into(module):
            return None
        try:
            graph = _Tracer(self).trace(module)
            source = _Lines(module, graph, self._dtype).source()
        except _UNTRACEABLE:
            return None
        return None if source is None else Program(source)


class _Tracer(fx.Tracer):
    def __init__(self, lowering: _Lowering) -> None:
        super().__init__()
        self._lowering = lowering

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return not self._lowering.looks_into(module)


@dataclass
class _Chain:
    """A convolution and the nodes that it takes in; `end` is the last of them."""

    conv: fx.Node
    end: fx.Node
    norm: nn.Module | None = None
    shortcut: fx.Node | None = None
    relu: bool = False


class _Lines:
    """A graph becoming the source of a program."""

    def __init__(self, root: nn.Module, graph: fx.Graph, dtype: torch.dtype | None) -> None:
        self._root, self._graph, self._dtype = root, graph, dtype
        self._modules = {
            node: root.get_submodule(node.target)
            for node in graph.nodes
            if node.op == "call_module"
        }
        self._chains: dict[fx.Node, _Chain] = {}  # by end
        self._inside: set[fx.Node] = set()  # nodes of chains

    def source(self) -> Source | None:
        """None: there is no convolution, or a forward that takes more than one tensor."""
        first, *others = (node for node in self._graph.nodes if node.op == "placeholder")
        if any(node.users for node in others):
            return None
        self._drop_nothings()
        for node in self._graph.nodes:
            if self._is(node, is_foldable_convolution) and self._alone(node):
                self._take(node)
        return self._written(first, others) if self._chains else None

    def _is(self, node: fx.Node, test) -> bool:
        return node in self._modules and test(self._modules[node])

    @staticmethod
    def _alone(node: fx.Node) -> bool:
        """Whether a module is called with one value."""
        return len(node.args) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs

    def _drop_nothings(self) -> None:
        for node in list(self._graph.nodes):
            if self._is(node, lambda m: is_plain(m, *_NOTHING)) and self._alone(node):
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)

    def _take(self, conv: fx.Node) -> None:
        if any(_changes(user, conv.args[0], self._modules) for user in conv.args[0].users):
            return  # what it reads is another thing later
        chain = _Chain(conv, conv)
        for extend in (self._take_norm, self._take_shortcut, self._take_relu):
            users = [user for user in chain.end.users if user not in self._inside]
            if len(chain.end.users) == 1 and users:
                extend(chain, users[0])
        self._chains[chain.end] = chain
        self._inside |= {conv, chain.end}

    def _take_norm(self, chain: _Chain, user: fx.Node) -> None:
        if self._is(user, is_foldable_norm) and self._alone(user):
            chain.norm, chain.end = self._modules[user], user
            self._inside.add(user)

    def _take_shortcut(self, chain: _Chain, user: fx.Node) -> None:
        if user.op not in ("call_function", "call_method") or user.target not in _ADD:
            return
        if len(user.args) != 2 or user.kwargs:
            return
        left, right = user.args
        shortcut = right if left is chain.end else left
        if not isinstance(shortcut, fx.Node) or left is right:
            return
        if user.target in _ADD_IN_PLACE and left is shortcut and len(shortcut.users) > 1:
            return
        chain.shortcut, chain.end = shortcut, user
        self._inside.add(user)

    def _take_relu(self, chain: _Chain, user: fx.Node) -> None:
        called = user.op in ("call_function", "call_method") and user.target in _RELU
        if called or (self._is(user, lambda m: is_plain(m, nn.ReLU)) and self._alone(user)):
            chain.relu, chain.end = True, user
            self._inside.add(user)

    def _written(self, first: fx.Node, others: list[fx.Node]) -> Source:
        nodes = [
            node
            for node in self._graph.nodes
            if node in self._chains or (node not in self._inside and node.op != "placeholder")
        ]
        source = Source()
        places = {first: 0}
        for node in nodes:
            if node.op != "output":
                places[node] = len(places)
        source.places = len(places)
        # the node after which each value is not needed
        last: dict[fx.Node, fx.Node] = {}
        for node in nodes:
            for value in self._reads(node):
                last[value] = node
        for node in nodes:
            if node.op == "output":
                source.result = _template(node.args[0], places)
                continue
            dead = tuple(places[v] for v in self._reads(node) if last[v] is node)
            if node not in last:
                dead += (places[node],)
            source.steps.append(self._step(node, places, dead, source, last))
        return source

    def _reads(self, node: fx.Node) -> list[fx.Node]:
        if node not in self._chains:
            return list(node.all_input_nodes)
        chain = self._chains[node]
        reads = [chain.conv.args[0]]
        if chain.shortcut is not None and chain.shortcut not in reads:
            reads.append(chain.shortcut)
        return reads

    def _step(self, node, places, dead, source: Source, last) -> Step:
        place = places[node]
        if node in self._chains:
            chain = self._chains[node]
            name = chain.conv.target.replace(".", "_") + f"_{place}"
            source.modules[name] = self._convolution(chain, last)
            args = tuple(Value(places[v]) for v in (chain.conv.args[0], chain.shortcut) if v)
            return Step("convolution", name, args, {}, place, dead)
        args = _template(tuple(node.args), places)
        kwargs = _template(dict(node.kwargs), places)
        if node.op == "call_module":
            name = node.target.replace(".", "_")
            source.modules[name] = self._modules[node]
            return Step("module", name, args, kwargs, place, dead)
        if node.op == "get_attr":
            value = operator.attrgetter(node.target)(self._root)
            holder = _Constant(value)
            name = "constant_" + node.target.replace(".", "_")
            source.modules[name] = holder
            return Step("module", name, (), {}, place, dead)
        kind = "method" if node.op == "call_method" else "function"
        return Step(kind, node.target, args, kwargs, place, dead)

    def _convolution(self, chain: _Chain, last) -> Convolution:
        conv = self._modules[chain.conv]
        x, shortcut = chain.conv.args[0], chain.shortcut
        weight, bias = folded(conv, chain.norm)
        return Convolution(
            weight,
            bias,
            conv,
            self._dtype or conv.weight.dtype,
            relu=chain.relu,
            in_place=shortcut is not None and self._is_free(chain, last),
            strange=not all(v is None or self._is_fresh(v) for v in (x, shortcut)),
        )

    def _is_fresh(self, node: fx.Node) -> bool:
        """Whether a value is channels_last memory that nothing but this node's users can see."""
        if node in self._chains:
            return True
        pools = self._is(node, lambda m: pool_obstacle("", m) is None)
        return pools and self._is_fresh(node.args[0])

    def _is_free(self, chain: _Chain, last) -> bool:
        """Whether the shortcut may be overwritten: it is read by convolutions alone, last here."""
        shortcut = chain.shortcut
        return (
            self._is_fresh(shortcut)
            and last[shortcut] is chain.end
            and shortcut is not chain.conv.args[0]
            and all(user in self._inside for user in shortcut.users)
        )


class _Constant(nn.Module):
    """A tensor of the network that its forward names."""

    def __init__(self, value: Any) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Any:
        return self.value


def _changes(user: fx.Node, value: fx.Node, modules: dict[fx.Node, nn.Module]) -> bool:
    """Whether a node may change a value that it reads in place."""
    if user in modules:
        return bool(getattr(modules[user], "inplace", False))
    if not user.args or user.args[0] is not value:
        return bool(user.kwargs.get("inplace", False))
    name = user.target if isinstance(user.target, str) else getattr(user.target, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or user.target in _ADD_IN_PLACE or bool(user.kwargs.get("inplace", False))


def _template(structure: Any, places: dict[fx.Node, int]) -> Any:
    """Arguments as plain containers with places instead of nodes."""
    if isinstance(structure, fx.Node):
        return Value(places[structure])
    if isinstance(structure, dict):
        return {key: _template(value, places) for key, value in structure.items()}
    if isinstance(structure, slice):
        parts = (structure.start, structure.stop, structure.step)
        return slice(*(_template(part, places) for part in parts))
    if isinstance(structure, (tuple, list)):
        kind = tuple if isinstance(structure, tuple) else list
        return kind(_template(value, places) for value in structure)
    return structure
