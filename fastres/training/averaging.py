"""A running average of a network, which usually tests better than its last state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class Average:
    """Exponential moving average of parameters and buffers: decay · average + (1 - decay) · new.

    Updated every `every` iterations, after the step. It is a copy of the network as long as the
    warm-up lasts. Source: Szegedy et al. 2016 (arXiv 1512.00567), section 8; torch's AveragedModel.
    """

    def __init__(self, module: nn.Module, decay: float, every: int) -> None:
        self._every = every
        # running statistics as well: they belong to the weights that made them
        self._averaged = AveragedModel(
            module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True
        )

    @property
    def module(self) -> nn.Module:
        """The averaged network."""
        return self._averaged.module

    def update(self, module: nn.Module, iteration: int, warming: bool) -> None:
        """Takes in `module` after `iteration` steps, if it is the turn."""
        if iteration % self._every:
            return
        if warming:
            self._averaged.n_averaged.zero_()
        self._averaged.update_parameters(module)

    def state_dict(self) -> dict[str, Any]:
        """The network's state_dict under "model", and the number of updates."""
        return {"model": self.module.state_dict(), "updates": int(self._averaged.n_averaged)}

    def resume(self, state: dict[str, Any] | None, module: nn.Module) -> bool:
        """Takes over a checkpoint's state; without one starts from `module` and returns False."""
        started = {"model": module.state_dict(), "updates": 1}
        self.load_state_dict(started if state is None else state)
        return state is not None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["model"])
        self._averaged.n_averaged.copy_(torch.tensor(state["updates"]))
