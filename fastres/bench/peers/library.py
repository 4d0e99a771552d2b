"""The network as another library of PyTorch modules makes and runs it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch
from torch import nn

from ..workload import Step, Workload, make_batches, make_step
from .architecture import Architecture, architecture, torchvision_like
from .peer import Peer


def import_reason(package: str, *, install: str | None = None) -> str | None:
    """The reason why a package cannot be imported, or None."""
    try:
        quietly(package)
    except ModuleNotFoundError as error:
        if error.name != package.partition(".")[0]:
            return f"{package} cannot be imported: {error}"
        return f"{package} is not installed (pip install {install or package})"
    except Exception as error:  # one that was built for another torch raises whatever it likes
        return f"{package} cannot be imported: {type(error).__name__}: {error}"
    return None


def quietly(name: str) -> ModuleType:
    """A module, without what it warns about on being imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(name)


def library_peer(name: str, construct: Callable[[Architecture], nn.Module]) -> Peer:
    """A peer named after a library, in whose modules `construct` makes the network."""

    def make(workload: Workload) -> Step:
        module = construct(architecture(workload))
        # strict: names and shapes are those of the workload's own network
        module.load_state_dict(workload.state())
        module = module.to(workload.device, memory_format=torch.channels_last).train()
        return make_step(workload, module, make_batches(workload, torch.channels_last))

    def unavailable(workload: Workload) -> str | None:
        return import_reason(name) or torchvision_like(workload)

    return Peer(name, make, unavailable)
