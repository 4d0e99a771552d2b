"""An optimised network's own state: weights loaded into it, and a CUDA graph that holds them."""

from __future__ import annotations

import copy

import pytest
import torch

import fastres
from fastres.inference import Optimized
from fastres.inference.optimize import _Graph


def images(n: int = 2) -> torch.Tensor:
    return torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def optimized() -> Optimized:
    torch.manual_seed(0)
    return fastres.optimize(fastres.resnet20().eval(), images())


def test_loaded_weights_are_used():
    first, second = optimized(), optimized()
    state = {name: value * 0.5 for name, value in first.state_dict().items()}
    before = first(images())
    for one in (first, second):  # weights were prepared for this size
        one.load_state_dict(state)
    assert not torch.equal(first(images()), before)
    assert torch.equal(first(images()), second(images()))
    fresh = copy.deepcopy(first)
    assert torch.equal(fresh(images()), first(images()))


class _Replayed:
    """Stands in for a CUDA graph."""

    def replay(self) -> None:
        pass


def test_a_graph_takes_only_what_it_was_captured_with():
    graph = _Graph.__new__(_Graph)
    graph._inputs, graph._outputs, graph._graph = (images(), 2), images(), _Replayed()
    assert torch.equal(graph(images() * 2, 2), images())
    assert torch.equal(graph._inputs[0], images() * 2)
    for wrong in ((images(3), 2), (images(), 3), (images(),), (images().double(), 2)):
        with pytest.raises(ValueError, match="which the CUDA graph was captured with"):
            graph(*wrong)


def test_a_captured_network_stays_where_it_is():
    captured = optimized()
    captured._graph = object()
    for move in (captured.half, captured.double, lambda: captured.to("cpu")):
        with pytest.raises(RuntimeError, match="cannot be moved or converted"):
            move()
