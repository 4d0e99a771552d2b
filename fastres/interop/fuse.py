"""Fused blocks in somebody else's model, in place.

An object is not replaced: its class changes to one that derives from its own, has the same
parameters, buffers, names and hooks, and another forward. Whoever holds the object, an optimiser or
an exponential average, notices nothing, and changing the class back undoes it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn

from ..layers import Block, Stage, check_memory
from ..layers.sequence import FusedSequential, may_fuse
from .stem import Stem

# the libraries that we know, and where their classes are adopted
LIBRARIES = {
    "torchvision.models.resnet": "torchvision_resnet",
    "timm.models.resnet": "timm_resnet",
}


# what may have been set on one object of ours; its own class knows none of them
_SETTINGS = ("memory", "fused", "amp")


class Left(NamedTuple):
    """A block that stays as it is: its name in the model, its kind, and why."""

    name: str
    kind: str
    why: str


class FusedStage(Stage):
    """An `nn.Sequential` of blocks; apart from `Stage`, which networks of our own have."""


def adopters() -> Iterator[ModuleType]:
    """Our module for every library that has been imported."""
    for library, ours in LIBRARIES.items():
        if sys.modules.get(library) is not None:
            yield import_module(f"{__package__}.{ours}")


def register_timm() -> None:
    """Let `timm.create_model` know "fastres_resnet50" and the others of `timm_models`.

    Raises:
        ImportError: timm is not installed.
    """
    import_module(f"{__package__}.timm_models")


def fuse(model: nn.Module, *, strict: bool = False, memory: str | None = None) -> nn.Module:
    """Let the residual blocks of a torchvision or timm model run as fused operators, in place.

    Parameters, buffers, names, hooks, modes, dtypes and devices stay what they are, and so do the
    objects: an optimiser made before keeps working. What may be fused is asked again at every
    forward: a hooked or replaced module is called as it stands. Networks of fastres's own made
    with `fused=False` are fused too, and any `nn.Sequential` of convolution, BN and ReLU.

    Args:
        model: any module that contains such blocks, or a block itself.
        strict: raise if a residual block has a piece that is not fused; nothing is changed then.
        memory: "fast", or "low" to keep less for the backward pass even where that takes longer;
            None leaves it as it is ("fast" unless it was set).

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module, or one that is wrapped, compiled or scripted: fuse
            before that.
        ValueError: `strict` and something is left alone, or there is nothing to fuse at all.
    """
    check_unwrapped(model, "fused")
    if memory is not None:
        check_memory(memory)
    changes, left = _plan(model)
    if strict and left:
        found = "; ".join(f"{one.name} ({one.kind}): {one.why}" for one in left)
        raise ValueError(f"model must hold only blocks that are fused, got {found}")
    if not changes and not any(isinstance(module, Block) for module in model.modules()):
        message = f"nothing to fuse in {type(model).__name__}"
        if strict:
            raise ValueError(f"model must hold residual blocks of torchvision or timm: {message}")
        warnings.warn(f"fastres.fuse: {message}", stacklevel=2)
    for module, kind in changes:
        if kind is None:
            _set_fused(module, True)
        else:
            module.__class__ = kind
    for module in model.modules():
        if memory is not None and isinstance(module, Block):
            module.memory = memory
    return model


def unfuse(model: nn.Module) -> nn.Module:
    """Undo `fuse`, in place: every module has its own class and forward again.

    Returns:
        `model`.

    Raises:
        TypeError: `model` is not a module, or is wrapped, compiled or scripted.
    """
    check_unwrapped(model, "fused")
    originals = {ours: theirs for theirs, ours in _classes().items()}
    originals |= {FusedStage: nn.Sequential, FusedSequential: nn.Sequential}
    for module in model.modules():
        kind = type(module)
        if kind in originals:
            module.__class__ = originals[kind]
            for name in _SETTINGS:
                module.__dict__.pop(name, None)
        elif _has_switch(module):
            _set_fused(module, False)
    return model


def left_alone(model: nn.Module) -> list[Left]:
    """The residual blocks of known libraries that `fuse` does not fuse."""
    return _plan(model)[1]


def check_unwrapped(model: nn.Module, done: str) -> None:
    """Raise TypeError unless `model` is a module, and neither it nor one inside it is wrapped,
    compiled, scripted or sharded; `done` says in the message what must come before that."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    for name, module in model.named_modules():
        wrapping = _wrapping(module)
        if wrapping is not None:
            where = f"its {name}" if name else "it"
            raise TypeError(
                f"model must be {done} before {wrapping}: {where} is a {type(module).__name__}"
            )


def _wrapping(module: nn.Module) -> str | None:
    """What has been done to a module after which its class must stay as it is; None: nothing."""
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        return f"it is wrapped in {type(module).__name__}"
    if isinstance(module, torch.jit.ScriptModule):
        return "torch.jit compiles it"
    if type(module).__name__ == "OptimizedModule" or module._compiled_call_impl is not None:
        return "torch.compile"
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is not None and isinstance(module, (fsdp.FullyShardedDataParallel, fsdp.FSDPModule)):
        return "it is sharded"
    return None


def _classes() -> dict[type[nn.Module], type[nn.Module]]:
    """What becomes what."""
    known: dict[type[nn.Module], type[nn.Module]] = {}
    for adopter in adopters():
        known.update(adopter.CLASSES)
    return known


def _plan(model: nn.Module) -> tuple[list[tuple[nn.Module, type[nn.Module] | None]], list[Left]]:
    """(modules and the class that each gets, None: its switch is set; blocks left alone)."""
    known = _classes()
    foreign = tuple(block for adopter in adopters() for block in adopter.BLOCKS)
    changes: list[tuple[nn.Module, type[nn.Module] | None]] = []
    left: list[Left] = []
    blocks: set[nn.Module] = set()
    for name, module in model.named_modules():
        kind = type(module)
        ours = known.get(kind)
        why = None
        if isinstance(module, Block):
            blocks.add(module)
        elif isinstance(module, foreign):
            why = _foreign_obstacle(module, ours)
            if why is None:
                blocks.add(module)
        if why is not None:
            left.append(Left(name, kind.__name__, why))
        elif _has_switch(module):
            if not module.fused:
                changes.append((module, None))
        elif ours is not None and _worth_it(module, ours):
            changes.append((module, ours))
    # a block looks at its shortcut itself
    inside = {piece for block in blocks for piece in block.modules()}
    for module in model.modules():
        if type(module) is not nn.Sequential or module in inside:
            continue
        if any(child in blocks for child in module):
            changes.append((module, FusedStage))
        elif may_fuse(list(module)):
            changes.append((module, FusedSequential))
    return changes, left


def _worth_it(module: nn.Module, ours: type[nn.Module]) -> bool:
    """Whether a known class has what its counterpart fuses."""
    if issubclass(ours, FusedSequential):
        return may_fuse(list(module))
    if issubclass(ours, Stem):
        return all(isinstance(getattr(module, name, None), nn.Module) for name in ours.stem_names)
    return True


def _foreign_obstacle(block: nn.Module, ours: type[nn.Module] | None) -> str | None:
    """Why a block of another library is left alone."""
    if ours is None:
        return f"{type(block).__name__} is not one of the classes that are fused"
    if "forward" in block.__dict__:
        return "it has a forward of its own"
    return ours.kind_obstacle(block)


def _has_switch(module: nn.Module) -> bool:
    """Whether it is one of fastres's own, made with or without `fused`."""
    ours = type(module).__module__.startswith(("fastres.layers.", "fastres.models."))
    return ours and "fused" in module.__dict__


def _set_fused(module: nn.Module, fused: bool) -> None:
    module.fused = fused
    relu = getattr(module, "relu", None)
    if type(relu) is nn.ReLU:
        relu.inplace = not fused  # as `make_relu`
