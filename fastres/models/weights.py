"""The `weights=` argument: torchvision's published weights, or a file."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from enum import Enum
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# how many differing keys an error lists
SHOWN = 3


def resolve(weights: Any, network: str) -> Enum | Path | None:
    """What `weights` stands for: a member of torchvision's enum of `network`, a file, or None.

    Args:
        weights: None; a member of the enum (`ResNet50_Weights.IMAGENET1K_V2`); its name with or
            without the class ("ResNet50_Weights.IMAGENET1K_V1", "IMAGENET1K_V2", "DEFAULT"); or the
            path of a file with a state_dict, see `read_file`. Any other string is a path.
        network: name of the constructor.

    Raises:
        TypeError: `weights` is nothing of the above, or a member of another network's enum.
        ValueError: the network has no such published weights.
        FileNotFoundError: there is no such file.
        ModuleNotFoundError: published weights are asked for and torchvision is not installed.
    """
    if weights is None:
        return None
    if isinstance(weights, str):
        named = re.fullmatch(r"(?:(\w+_Weights)\.)?(DEFAULT|IMAGENET1K_\w+)", weights)
        if named:
            return _published(network, named.group(1), named.group(2), weights)
    if isinstance(weights, (str, PathLike)):
        path = Path(fspath(weights))
        if not path.is_file():
            raise FileNotFoundError(
                f"weights must be one of torchvision's enums, the name of one such as 'DEFAULT', "
                f"or an existing file, got {str(weights)!r}"
            )
        return path
    if isinstance(weights, Enum):
        return _published(network, type(weights).__name__, weights.name, repr(weights))
    raise TypeError(
        f"weights must be None, one of torchvision's enums, a name or a path, got "
        f"{type(weights).__name__}"
    )


def _published(network: str, enum_name: str | None, member: str, given: str) -> Enum:
    try:
        from torchvision.models import get_model_weights
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"weights={given!r} are published by torchvision, which is not installed; install it, "
            f"or give the path of a file"
        ) from error
    try:
        enum = get_model_weights(network)
    except ValueError:
        raise ValueError(
            f"there are no published weights for {network}: weights must be None or the path of a "
            f"file, got {given}"
        ) from None
    if enum_name not in (None, enum.__name__):
        raise TypeError(f"weights of {network} must be a {enum.__name__}, got {given}")
    if member not in enum.__members__:
        raise ValueError(
            f"weights of {network} must be one of {list(enum.__members__)}, got {given}"
        )
    return enum[member]


def check_published(weights: Enum, variant: str, *, bottleneck: bool) -> None:
    """Raise ValueError where published weights would load into a network they were not trained in.

    The two variants of a bottleneck have the same keys and shapes, so nothing else would notice.
    """
    if bottleneck and variant == "v1":
        raise ValueError(f"{weights!r} was trained with variant 'v1.5', got variant {variant!r}")


def load(model: nn.Module, source: Enum | Path, progress: bool = True) -> None:
    """Load published weights (downloaded, hash checked) or a file into `model`, strictly."""
    if isinstance(source, Enum):
        state = source.get_state_dict(progress=progress, check_hash=True)
    else:
        state = read_file(source)
    load_state_dict(model, state, origin=str(source))


def read_file(path: str | PathLike) -> Mapping[str, Tensor]:
    """The state_dict in a file that `torch.save` wrote.

    The file holds the state_dict itself, or a checkpoint that has it under "model". It is read with
    `weights_only=True`: no code in it runs.

    Raises:
        ValueError: the file holds something else, or is damaged.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise ValueError(
            f"{path} is not a file of weights written by torch.save, or it is damaged"
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(key, str) and isinstance(t, Tensor) for key, t in state.items())
    ):
        raise ValueError(
            f"{path} must hold a state_dict, or a checkpoint with one under 'model', got "
            f"{type(state).__name__}"
        )
    return state


def load_state_dict(model: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `model`, strictly; `origin` says in an error where it came from.

    Raises:
        ValueError: `state` is another network's; names the first keys and shapes that differ.
            Entries that agree have been copied by then.
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(_difference(model.state_dict(), state, origin) or str(error)) from error


def _difference(own: Mapping[str, Tensor], other: Mapping[str, Tensor], origin: str) -> str:
    missing = [key for key in own if key not in other]
    unexpected = [key for key in other if key not in own]
    shapes = [
        f"{key} {list(own[key].shape)} (got {list(other[key].shape)})"
        for key in own
        if key in other and own[key].shape != other[key].shape
    ]
    parts = [
        f"{title}: {', '.join(items[:SHOWN])}"
        + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
        for title, items in (
            ("other shapes", shapes),
            ("missing", missing),
            ("not in this network", unexpected),
        )
        if items
    ]
    return f"{origin} belongs to another network; {'; '.join(parts)}" if parts else ""
