"""Fixtures of the parity tests."""

from __future__ import annotations

import pytest
import torch
from parity.oracle import Poison


@pytest.fixture
def poison(monkeypatch):
    """Kernels' results in memory full of NaN, whose margins must stay untouched."""
    memory = Poison()
    monkeypatch.setattr("fastres.kernels.launch.torch.empty", memory.empty)
    yield memory
    monkeypatch.undo()
    memory.check()


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
