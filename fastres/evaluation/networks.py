"""Trained networks from files: fastres's checkpoints, and plain state_dicts of known networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastres import backends, models
from fastres.inference import optimize
from fastres.models.weights import read_file
from fastres.training import checkpoint
from fastres.training.data.normalize import Normalize
from fastres.training.errors import CheckpointError, UsageError

_SHOWN = 3  # how many other options an error names


@dataclass(frozen=True)
class Network:
    """A trained network on its device, in eval mode.

    `config` holds the options of the run that trained it, empty for a plain state_dict; `normalize`
    and `classes`, the classes' names in the order of the outputs, are None where the file has none.
    `averaged`: its weights are the run's moving average.
    """

    path: Path
    name: str
    module: nn.Module
    num_classes: int
    config: Mapping[str, Any]
    normalize: Normalize | None
    classes: tuple[str, ...] | None
    averaged: bool


@dataclass(frozen=True)
class How:
    """Which form a network is tested in: fused operators or PyTorch's, optimised or not."""

    device: torch.device
    amp: torch.dtype | None
    fused: bool
    optimize: bool
    averaged: bool = True  # take the moving average of the weights where a run kept one


def load(
    path: Path, how: How, name: str | None = None, options: Mapping[str, Any] | None = None
) -> Network:
    """The network in a file, made as it was trained, with its weights.

    Args:
        path: a checkpoint of `fastres train`, or a file with a state_dict.
        name: of the network; a checkpoint knows its own.
        options: `shortcut` and `variant`; a checkpoint knows its own.

    Raises:
        CheckpointError: the file cannot be read, or its weights are of another network.
        UsageError: a name or option is missing, wrong, or another than the checkpoint's.
    """
    options = {key: value for key, value in (options or {}).items() if value is not None}
    state = _read(path)
    config: Mapping[str, Any] = state.get("config", {})
    if config:
        _check_own(path, config, {"model": name, **options})
        name = config["model"]
        own = {key: config.get(key) for key in ("shortcut", "variant")}
        options = {key: value for key, value in own.items() if value is not None}
    elif name is None:
        raise UsageError(f"{path} holds a state_dict and no options: give --model, its network")
    averaged = how.averaged and bool(state.get("average"))
    weights = state["average"]["model"] if averaged else state["model"]
    if "fc.weight" not in weights:
        raise CheckpointError(f"{path} is of no network of fastres: it has no fc.weight")
    num_classes = weights["fc.weight"].shape[0]
    try:
        module = models.create(name, num_classes=num_classes, fused=how.fused, **options)
    except (ValueError, TypeError) as error:
        raise UsageError(f"model {name!r}: {error}") from None
    try:
        models.load_state_dict(module, weights, origin=str(path))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    stored = state.get("normalize")
    return Network(
        path,
        name,
        _placed(module, how),
        num_classes,
        config,
        None if stored is None else Normalize.from_dict(stored),
        tuple(state["classes"]) if state.get("classes") else None,
        averaged,
    )


def _read(path: Path) -> Mapping[str, Any]:
    """A checkpoint's content, or {"model": state_dict}."""
    try:
        return checkpoint.load(path)
    except CheckpointError as error:
        if not path.is_file():
            raise
        try:
            weights = read_file(path)
        except (ValueError, OSError):
            raise error from None
    return {"model": _without_prefix(weights)}


def _without_prefix(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Weights saved from inside DistributedDataParallel begin with "module."."""
    prefix = "module."
    if all(key.startswith(prefix) for key in weights):
        return {key.removeprefix(prefix): tensor for key, tensor in weights.items()}
    return weights


def _check_own(path: Path, config: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    for key, value in given.items():
        if value is not None and config.get(key) != value:
            raise UsageError(f"{path} was trained with {key} {config.get(key)!r}, got {value!r}")


def _placed(module: nn.Module, how: How) -> nn.Module:
    module = module.to(how.device, memory_format=torch.channels_last).eval()
    try:
        if how.fused:
            backends.chosen(how.device, how.amp or torch.float32)
        return optimize(module, dtype=how.amp) if how.optimize else module
    except (ValueError, RuntimeError) as error:
        raise UsageError(str(error)) from None


def same(networks: Sequence[Network], what: str, values: Sequence[Any]) -> Any:
    """The one value that all networks of an ensemble have. Raises UsageError if they differ."""
    for network, value in zip(networks, values, strict=True):
        if value != values[0]:
            raise UsageError(
                f"{what} must be the same in every checkpoint: {networks[0].path} has "
                f"{_short(values[0])}, {network.path} has {_short(value)}"
            )
    return values[0]


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > _SHOWN:
        return f"{', '.join(map(str, value[:_SHOWN]))} and {len(value) - _SHOWN} more"
    return str(value)
