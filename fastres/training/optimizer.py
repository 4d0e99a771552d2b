"""SGD as a training run uses it, the same on every device and inside a CUDA graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# how this process computes a step; a checkpoint's own way must not take its place
_OWN = ("lr", "fused", "foreach", "differentiable")


def make_sgd(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    device: torch.device,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.SGD:
    """SGD with momentum, on parameters or on groups: on a GPU one kernel whose rate is a tensor.

    There the rate can change under a captured graph, and a step that fp16's scaler leaves out needs
    no answer from the device. The momenta exist before the first step: a fused first step that is
    left out would leave them uninitialised, and zeros give the same numbers.
    """
    parameters = list(parameters)
    common = {"momentum": momentum, "weight_decay": weight_decay}
    if device.type != "cuda":
        return torch.optim.SGD(parameters, lr=lr, **common)
    rate = torch.tensor(lr, dtype=torch.float32, device=device)
    optimizer = torch.optim.SGD(parameters, lr=rate, fused=True, **common)
    if momentum:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def decay_groups(module: nn.Module, norm_decay: bool) -> list[Any]:
    """All parameters, or with `norm_decay` off two groups: biases and batch norm's undecayed.

    Those are the parameters of one dimension (He et al. 2019, arXiv 1812.01187, section 3.1).
    """
    parameters = list(module.parameters())
    if norm_decay:
        return parameters
    return [
        {"params": [p for p in parameters if p.dim() > 1]},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The learning rate of all groups; a tensor stays where it is."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def state_of(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The state_dict with learning rates as numbers, which any device can go on from."""
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["lr"] = float(group["lr"])
    return state


def load_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a state of `state_of`, whatever device it is from.

    The learning rate stays the tensor it is: the next step sets it.
    """
    own = [{name: group[name] for name in _OWN} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, kept in zip(optimizer.param_groups, own, strict=True):
        group.update(kept)
