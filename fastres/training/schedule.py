"""Learning rates: a function of the iteration and, for some rules, of the errors so far."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, Protocol

from fastres.training.config import TrainConfig

WARMUP_WINDOW = 50  # iterations whose training error ends a warm-up


class Schedule(Protocol):
    """Learning rate by iteration, and what it keeps between epochs."""

    warmup: WarmUp

    def lr(self, iteration: int) -> float: ...

    def observe(self, error: float) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class WarmUp:
    """Lower rates before the schedule's own.

    For `iterations` at `lr`, or rising from it in a line; or at `lr` until the training error, in
    percent, is below `error` (section 4.2 of the paper, depth 110).
    """

    lr: float
    iterations: int = 0
    linear: bool = False
    error: float | None = None
    done: bool = field(default=False, init=False)

    def rate(self, iteration: int, full: float) -> float:
        """The rate where the schedule by itself would have `full`."""
        if not self.lasts(iteration):
            return full
        if not self.linear:
            return self.lr
        return self.lr + (full - self.lr) * iteration / self.iterations

    def lasts(self, iteration: int) -> bool:
        """Whether it is not over before this iteration."""
        if self.error is not None:
            return not self.done
        return iteration < self.iterations

    def waits_for_error(self) -> bool:
        """Whether a training error may end it."""
        return self.error is not None and not self.done

    def observe(self, error: float) -> None:
        """Takes the training error of the last iterations, in percent."""
        if self.error is not None and error < self.error:
            self.done = True


@dataclass
class _Rule(ABC):
    base_lr: float
    warmup: WarmUp

    def lr(self, iteration: int) -> float:
        """The rate of an iteration, counted from 0."""
        return self.warmup.rate(iteration, self._rate(iteration))

    @abstractmethod
    def _rate(self, iteration: int) -> float:
        """The rate of an iteration after the warm-up."""

    def observe(self, error: float) -> None:  # noqa: B027 - not every rule looks
        """Takes one epoch's held-out error; most rules are fixed in advance."""

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).kind, "warm": self.warmup.done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state; another rule's says only whether the warm-up is over."""
        self.warmup.done = state.get("warm", False)


@dataclass
class StepSchedule(_Rule):
    """The rate times gamma from each milestone (an iteration) on."""

    kind = "step"

    gamma: float
    milestones: tuple[int, ...] = ()

    def _rate(self, iteration: int) -> float:
        reductions = sum(iteration >= start for start in self.milestones)
        return self.base_lr * self.gamma**reductions


@dataclass
class CosineSchedule(_Rule):
    """Half a cosine from the rate to zero, from the end of the warm-up to the last iteration."""

    kind = "cosine"

    total: int

    def _rate(self, iteration: int) -> float:
        start = self.warmup.iterations
        if iteration < start:
            return self.base_lr
        part = (iteration - start) / max(1, self.total - start)
        return self.base_lr * 0.5 * (1 + math.cos(math.pi * min(part, 1.0)))


@dataclass
class PlateauSchedule(_Rule):
    """The rate times gamma when the error has not fallen for `patience` epochs in a row."""

    kind = "plateau"

    gamma: float
    patience: int = 5
    best: float = field(default=float("inf"), init=False)
    waited: int = field(default=0, init=False)
    reductions: int = field(default=0, init=False)

    def _rate(self, iteration: int) -> float:
        return self.base_lr * self.gamma**self.reductions

    def observe(self, error: float) -> None:
        if error < self.best:
            self.best, self.waited = error, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            self.reductions, self.waited = self.reductions + 1, 0

    def state_dict(self) -> dict[str, Any]:
        own = {"best": self.best, "waited": self.waited, "reductions": self.reductions}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["kind"] == "plateau":
            self.best, self.waited = state["best"], state["waited"]
            self.reductions = state["reductions"]


def make_schedule(config: TrainConfig, steps_per_epoch: int) -> Schedule:
    """The run's schedule, its milestones turned into iterations."""
    base = config.scaled_lr
    warmup = WarmUp(
        lr=base / 10 if config.warmup_lr is None else config.warmup_lr,
        iterations=config.warmup_iterations or config.warmup_epochs * steps_per_epoch,
        linear=config.warmup == "linear",
        error=config.warmup_error,
    )
    if config.schedule == "plateau":
        return PlateauSchedule(base, warmup, config.gamma, patience=config.patience)
    if config.schedule == "cosine":
        total = config.iterations
        if total is None:
            total = config.epochs * steps_per_epoch
        return CosineSchedule(base, warmup, total)
    unit = steps_per_epoch if config.epochs is not None else 1
    milestones = tuple(unit * m for m in config.milestones)
    return StepSchedule(base, warmup, config.gamma, milestones)
