"""What there is to tune: every choice that a training step makes, with the calls it decides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from fastres.bench.operator_calls import Call
from fastres.bench.operator_choices import choices_of
from fastres.kernels import tuned
from fastres.kernels.tuned import Choice, Key


@dataclass
class Task:
    """A choice to make: its key, what the tables choose now, and the calls it decides.

    `calls` says how often a training step makes each call; the largest ones come first.
    """

    key: Key
    choice: Choice
    calls: Counter[Call] = field(default_factory=Counter)

    @property
    def nbytes(self) -> int:
        """Of what goes into all calls of a step: a first guess at their time."""
        return sum(call.nbytes * count for call, count in self.calls.items())

    def largest(self, count: int) -> Counter[Call]:
        """The calls that go through the most bytes in a step."""
        weighed = sorted(self.calls.items(), key=lambda item: -item[0].nbytes * item[1])
        return Counter(dict(weighed[:count]))

    def __str__(self) -> str:
        key = self.key
        shape = " ".join(f"{name} {extent}" for name, extent in key.shape)
        prologue = "prologue" if key.prologue else ""
        return " ".join(filter(None, [key.operator, key.dtype, prologue, shape]))


def find_tasks(calls: Counter[Call], gpu: str | None, family: str) -> list[Task]:
    """The choices behind the calls of a step on a GPU, those with the most bytes first."""
    tasks: dict[Key, Task] = {}
    with tuned.choosing_for(gpu, family):
        for call, count in calls.items():
            for key, choice in choices_of(call).items():
                tasks.setdefault(key, Task(key, choice)).calls[call] += count
    return sorted(tasks.values(), key=lambda task: -task.nbytes)
