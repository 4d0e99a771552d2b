"""The search for the fastest right choice: verify, measure in turns, move on from the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch

from fastres.backends import triton as backend
from fastres.bench.compare import describe
from fastres.bench.compile_ahead import Compiler, Wanted
from fastres.bench.operator_calls import Call
from fastres.bench.operator_inputs import Judge, make_arguments
from fastres.bench.replay import copies_needed, on_device
from fastres.bench.timing import Clock, clock_for, interleave
from fastres.kernels import tuned
from fastres.kernels.tuned import Choice, Key
from fastres.tuning.candidates import identity, neighbours, unique
from fastres.tuning.tasks import Task

_WAVES = 4
_CALLS = 6  # of a step are measured for one choice; the largest ones stand for the others
# less than this is not worth a change, nor told apart from noise
_GAIN = 0.01

Times = dict[tuple, float]  # by a choice's identity


@dataclass
class Outcome:
    """What came of a task.

    Attributes:
        choice: the fastest right one.
        seconds: one call with it, the mean over the step's calls; None: nothing was measured.
        before: the same for the choice that was in use; None: it was rejected.
        tried: how many choices were verified.
        rejected: choices whose time does not count, each with the reason.
        problem: why nothing could be measured, or None.
    """

    task: Task
    choice: Choice
    seconds: float | None = None
    before: float | None = None
    tried: int = 0
    rejected: list[tuple[Choice, str]] = field(default_factory=list)
    problem: str | None = None


class LostDevice(RuntimeError):
    """The device does not answer any more after a kernel broke it."""


class Search:
    """Searches on one device.

    Args:
        device: where to measure.
        rounds: samples of each choice.
        limit: choices tried for one task at most.
        clock: seconds of a callable; the device's own unless given.
        deadline: time.monotonic() after which no further wave starts.
        compiler: compiles what a wave needs, all of it at once, before the wave is measured.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        rounds: int = 9,
        limit: int = 48,
        clock: Clock | None = None,
        deadline: float | None = None,
        compiler: Compiler | None = None,
    ) -> None:
        self.device, self.rounds, self.limit = device, rounds, limit
        self.clock = clock or clock_for(device)
        self.deadline = deadline
        self.compiler = compiler

    def late(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def ahead(self, tasks: Sequence[Task]) -> None:
        """Begin to compile what the first waves of these tasks will need."""
        if self.compiler is None:
            return
        for task in tasks:
            around = unique([task.choice, *neighbours(task.key.operator, task.choice)])
            self.compiler.ask(_kernels(task, task.largest(_CALLS), around[: self.limit]))

    def run(self, task: Task, told: Callable[[str], object] = lambda line: None) -> Outcome:
        """The fastest right choice for a task.

        Each wave measures the neighbours of the best choice so far beside it and beside the one
        in use, until none is faster. A choice whose numbers are wrong for one of the calls, or
        that does not run, gets no time.

        Args:
            told: told what is being measured.

        Raises:
            LostDevice: a kernel broke the device, and nothing more can be measured.
        """
        outcome = Outcome(task, task.choice)
        seen: set[tuple] = set()
        for wave in range(_WAVES):
            if self.late():
                break
            around = unique([outcome.choice, *neighbours(task.key.operator, outcome.choice)])
            fresh = [choice for choice in around if identity(choice) not in seen]
            fresh = fresh[: self.limit - len(seen)]
            if not fresh:
                break
            seen.update(map(identity, fresh))
            told(f"{task}, wave {wave + 1}: {len(fresh)} choices")
            outcome.tried = len(seen)
            try:
                improved = self._wave(outcome, unique([task.choice, outcome.choice, *fresh]))
            except torch.OutOfMemoryError:
                outcome.problem = "out of memory: a smaller batch may fit"
                break
            if not improved:
                break
        if outcome.seconds is None and outcome.problem is None:
            reasons = [reason for _, reason in outcome.rejected]
            outcome.problem = reasons[0] if reasons else "the time was up"
        return outcome

    def _wave(self, outcome: Outcome, choices: list[Choice]) -> bool:
        """Measure `choices` and keep the best; whether it is another one than before."""
        times = self._measure(outcome, choices)
        if not times:
            return False
        best = min(choices, key=lambda choice: times.get(identity(choice), float("inf")))
        outcome.before = times.get(identity(outcome.task.choice))
        now = times.get(identity(outcome.choice))
        improved = now is None or times[identity(best)] < now * (1 - _GAIN)
        if improved:
            outcome.choice = best
        outcome.seconds = times[identity(outcome.choice)]
        return improved

    def _measure(self, outcome: Outcome, choices: list[Choice]) -> Times:
        """Mean seconds of a call for each choice that is right for all calls of the task."""
        rejected = {identity(choice) for choice, _ in outcome.rejected}
        totals = {identity(c): 0.0 for c in choices if identity(c) not in rejected}
        calls = outcome.task.largest(_CALLS)
        if self.compiler is not None:
            alive = [choice for choice in choices if identity(choice) in totals]
            self.compiler.finish(_kernels(outcome.task, calls, alive), self.deadline)
        for call, count in calls.items():
            alive = [choice for choice in choices if identity(choice) in totals]
            times = self._measure_call(outcome, call, alive)
            totals = {name: totals[name] + count * seconds for name, seconds in times.items()}
        return {name: seconds / calls.total() for name, seconds in totals.items()}

    def _measure_call(self, outcome: Outcome, call: Call, choices: list[Choice]) -> Times:
        key = outcome.task.key
        copies = copies_needed(call.nbytes, self.device)
        sets = [make_arguments(call, self.device, seed) for seed in range(copies)]
        samples = {}
        judge = Judge(call, sets[0])
        pool = torch.cuda.graph_pool_handle() if self.device.type == "cuda" else None
        for number, choice in enumerate(choices):
            run = _with_choice(call, key, choice)
            try:
                wrong = judge.problem(run(*sets[0]))
                if wrong is None:
                    samples[str(number)] = on_device(run, sets, self.device, pool)
            except Exception as error:  # whatever a compiler or a driver raises
                wrong = describe(error)
                self._check_device(f"{call} with {choice}: {wrong}")
            if wrong is not None:
                outcome.rejected.append((choice, wrong))
        del judge
        if not samples:
            return {}
        taken = interleave(samples, self.rounds, clock=self.clock, deadline=self.deadline)
        return {
            identity(choices[int(number)]): median(seconds) / copies
            for number, seconds in taken.items()
        }

    def _check_device(self, what: str) -> None:
        if self.device.type != "cuda":
            return
        try:
            torch.cuda.synchronize(self.device)
        except RuntimeError as error:
            raise LostDevice(f"the GPU does not answer any more after {what}") from error


def _kernels(task: Task, calls: Iterable[Call], choices: list[Choice]) -> list[Wanted]:
    return [Wanted(call, task.key, choice) for call in calls for choice in choices]


def _with_choice(call: Call, key: Key, choice: Choice) -> Callable:
    """The call's operator in the Triton backend, with `choice` made for `key`."""
    operator = getattr(backend, call.operator)

    def watcher(asked: Key, chosen: Choice) -> Choice:
        return choice if asked == key else chosen

    def run(*arguments):
        with tuned.watching(watcher):
            return operator(*arguments)

    return run
