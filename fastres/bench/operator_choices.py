"""What the Triton backend does with a recorded call: choices it makes, bytes and flops it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..backends import triton as backend
from ..kernels import launch, tuned
from ..kernels.tuned import Choice, Key
from .operator_calls import Call, TensorSpec
from .traffic_model import Operation
from .traffic_model_recorder import Recorder


def choices_of(call: Call) -> dict[Key, Choice]:
    """The choices that the Triton backend makes for a call; nothing runs."""
    found: dict[Key, Choice] = {}

    def watcher(key: Key, choice: Choice) -> Choice:
        found[key] = choice
        return choice

    with tuned.watching(watcher):
        launches_of(call)
    return found


def launches_of(call: Call) -> list[launch.Launch]:
    """The kernels that the Triton backend launches for a call; nothing runs."""
    with FakeTensorMode(), launch.recording() as launches:
        getattr(backend, call.operator)(*_fake(call))
    return launches


def _fake(call: Call) -> list[Any]:
    """The call's arguments without memory."""
    return [
        torch.empty_strided(value.size, value.stride, dtype=value.dtype)
        if isinstance(value, TensorSpec)
        else list(value)
        if isinstance(value, tuple)
        else value
        for value in call.arguments
    ]


def operations_of(call: Call) -> list[Operation]:
    """The kernels behind a call with the bytes that each moves and its flops; nothing runs."""
    # whose parameters they belong to does not matter here
    with FakeTensorMode():
        arguments = _fake(call)
        with Recorder(nn.BatchNorm2d(1)) as recorder:
            getattr(torch.ops.fastres, call.operator)(*arguments)
    return recorder.operations
