"""torchvision's and timm's ResNets fused as they are constructed, whoever constructs them.

`install` lets the constructor of each library's `ResNet` end with `fuse`. A library that is not
imported yet is changed when it is: nothing is imported here that the program would not import. With
timm come the names of `timm_models`.
"""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass, field
from types import ModuleType

import torch

from .._imports import after_import
from ..layers import Block
from .fuse import LIBRARIES, fuse, left_alone, register_timm


@dataclass
class Fused:
    """What `install` has fused so far."""

    networks: Counter[str] = field(default_factory=Counter)
    blocks: int = 0
    left: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """One line."""
        if not self.networks:
            return "fastres: nothing was fused (no ResNet of torchvision or timm was made)"
        made = ", ".join(f"{count} {name}" for name, count in self.networks.items())
        text = f"fastres: fused {self.blocks} blocks of {made}"
        if self.left:
            text += "; left alone: " + ", ".join(
                f"{count} ({why})" for why, count in self.left.items()
            )
        return text


done = Fused()
_amp: torch.dtype | None = None
_installed = False


def install(*, amp: torch.dtype | None = None) -> Fused:
    """Fuse every ResNet of torchvision and timm from here on, once it is constructed.

    A class derived from one of these is left to its author. Calling it again changes `amp` only.

    Args:
        amp: the dtype of an autocast region around each forward pass, or None.

    Returns:
        A record of what is fused, filled as networks are made.
    """
    global _amp, _installed
    _amp = amp
    if not _installed:
        _installed = True
        for library in LIBRARIES:
            after_import(library, _change)
    return done


def _change(library: ModuleType) -> None:
    network = library.ResNet
    construct = network.__init__

    @functools.wraps(construct)
    def __init__(self, *arguments, **options) -> None:
        construct(self, *arguments, **options)
        if type(self) is network:
            _fuse(self, library.__name__.partition(".")[0])

    network.__init__ = __init__
    if library.__name__.startswith("timm."):
        register_timm()


def _fuse(model, library: str) -> None:
    left = left_alone(model)
    fuse(model)
    if _amp is not None:
        model.amp = _amp
    done.networks[f"{library} ResNet"] += 1
    done.blocks += sum(isinstance(module, Block) for module in model.modules())
    for one in left:
        done.left[one.why] += 1
