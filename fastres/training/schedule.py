"""Learning rates: a function of the iteration and, for the plateau rule, of the errors so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from fastres.training.config import TrainConfig


class Schedule(Protocol):
    """Learning rate by iteration, and what it keeps between epochs."""

    def lr(self, iteration: int) -> float: ...

    def observe(self, error: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class _WarmUp:
    """A constant lower rate for the first iterations (section 4.2 of the paper, depth 110)."""

    base_lr: float
    gamma: float
    warmup_iterations: int
    warmup_lr: float

    def _rate(self, iteration: int, reductions: int) -> float:
        if iteration < self.warmup_iterations:
            return self.warmup_lr
        return self.base_lr * self.gamma**reductions


@dataclass
class StepSchedule(_WarmUp):
    """The rate times gamma from each milestone (an iteration) on."""

    milestones: tuple[int, ...] = ()

    def lr(self, iteration: int) -> float:
        return self._rate(iteration, sum(iteration >= start for start in self.milestones))

    def observe(self, error: float) -> None:
        """The steps are fixed in advance: errors change nothing."""

    def state_dict(self) -> dict[str, Any]:
        return {"kind": "step"}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is kept between epochs."""


@dataclass
class PlateauSchedule(_WarmUp):
    """The rate times gamma when the error has not fallen for `patience` epochs in a row."""

    patience: int = 5
    best: float = field(default=float("inf"), init=False)
    waited: int = field(default=0, init=False)
    reductions: int = field(default=0, init=False)

    def lr(self, iteration: int) -> float:
        return self._rate(iteration, self.reductions)

    def observe(self, error: float) -> None:
        """Takes one epoch's held-out error."""
        if error < self.best:
            self.best, self.waited = error, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.reductions, self.waited = self.reductions + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": "plateau",
            "best": self.best,
            "waited": self.waited,
            "reductions": self.reductions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over another plateau's state; a step schedule's leaves a fresh start."""
        if state["kind"] == "plateau":
            self.best, self.waited = state["best"], state["waited"]
            self.reductions = state["reductions"]


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """The run's schedule, its milestones turned into iterations."""
    warmup_lr = config.lr / 10 if config.warmup_lr is None else config.warmup_lr
    common = (config.lr, config.gamma, config.warmup_iterations, warmup_lr)
    if config.schedule == "plateau":
        return PlateauSchedule(*common, patience=config.patience)
    unit = steps_per_epoch if config.epochs is not None else 1
    return StepSchedule(*common, milestones=tuple(unit * m for m in config.milestones))
