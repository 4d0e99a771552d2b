"""A traced network as a flat list of calls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

# function, places of its arguments (None: it takes all values), place of its result, dead places
_Call = tuple[Callable, "tuple[int, ...] | None", int, "tuple[int, ...]"]


class Value(NamedTuple):
    """The place of a value, where it stands among arguments."""

    place: int


@dataclass
class Step:
    """One call: of a child of the program, a function, or a method of the first argument.

    `dead` are the places whose values nobody needs afterwards.
    """

    kind: str  # "convolution", "module", "function" or "method"
    target: Any
    args: tuple
    kwargs: dict[str, Any]
    place: int
    dead: tuple[int, ...] = ()


@dataclass
class Source:
    """What a program is made of, before its modules are its children."""

    steps: list[Step] = field(default_factory=list)
    modules: dict[str, nn.Module] = field(default_factory=dict)
    result: Any = None
    places: int = 1


class Program(nn.Module):
    """The steps one after the other; place 0 is the argument."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        for name, module in source.modules.items():
            self.add_module(name, module)
        self._steps = source.steps
        self._result = source.result
        self._places = source.places
        self._calls: list[_Call] | None = None

    def forward(self, x):
        if self._calls is None:
            self._calls = [self._call(step) for step in self._steps]
        values: list[Any] = [None] * self._places
        values[0] = x
        del x  # a large image is not held longer than it is needed
        for call, places, place, dead in self._calls:
            if places is None:
                values[place] = call(values)
            elif len(places) == 1:
                values[place] = call(values[places[0]])
            else:
                values[place] = call(values[places[0]], values[places[1]])
            for other in dead:
                values[other] = None
        return _filled(self._result, values)

    def __getstate__(self):
        return {**self.__dict__, "_calls": None}

    def _call(self, step: Step) -> _Call:
        function = self._function(step)
        plain = all(type(value) is Value for value in step.args) and not step.kwargs
        if plain and len(step.args) in (1, 2):
            places = tuple(value.place for value in step.args)
            return function, places, step.place, step.dead

        def call(values: list[Any]):
            return function(*_filled(step.args, values), **_filled(step.kwargs, values))

        return call, None, step.place, step.dead

    def _function(self, step: Step) -> Callable:
        if step.kind == "function":
            return step.target
        if step.kind == "method":
            name = step.target
            return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)
        module = self.get_submodule(step.target)
        # our own steps have no hooks
        return module.forward if step.kind == "convolution" else module


def _filled(template: Any, values: list[Any]) -> Any:
    """A structure of arguments with the values in their places."""
    kind = type(template)
    if kind is Value:
        return values[template.place]
    if isinstance(template, dict):
        return kind((key, _filled(value, values)) for key, value in template.items())
    if isinstance(template, (tuple, list)):
        return kind(_filled(value, values) for value in template)
    if kind is slice:
        return slice(*(_filled(v, values) for v in (template.start, template.stop, template.step)))
    return template
