"""The least time of a workload by the byte-and-flop model: what its fused kernels have to move."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..backends import rows_per_channel
from .operator_calls import with_channels_last
from .traffic_model import OPTIMIZER, Machine, Operation
from .workload import CPU, Batch, Workload, make_step, output_shape

_PLAN = "back-to-back"  # of `traffic_model_plans`: what runs by default


def of(workload: Workload, machine: Machine) -> dict[str, Any]:
    """Bytes and flops of the workload's fused kernels, and the least seconds on `machine`.

    Recorded on fake tensors: nothing is computed. It is the floor of the kernels that fastres
    launches on a GPU; in inference that of the convolutions, with all that follows in their
    epilogues. Where a cache serves one kernel what another has written, or a convolution
    multiplies less than it says (Winograd), as on a CPU, a step can be faster.

    Raises:
        ImportError: Triton is not installed.
    """
    operations = list(_operations(workload, machine))
    return {
        "bytes": sum(operation.bytes for operation in operations),
        "flops": sum(operation.flops for operation in operations),
        "seconds": sum(machine.seconds(operation) for operation in operations),
        "machine": machine.name,
    }


def _operations(workload: Workload, machine: Machine) -> Iterable[Operation]:
    if workload.classes is not None and not workload.inference:
        from .traffic_model_plans import VARIANTS, record

        variant = next(one for one in VARIANTS if one.name == _PLAN)
        found = record(workload, variant, machine.gpu, machine.family).plan.operations
        return (one for one in found if workload.optimizer or one.phase != OPTIMIZER)
    return _recorded(workload, machine)


def _recorded(workload: Workload, machine: Machine) -> list[Operation]:
    # imported on first use: `import fastres.bench` must not import Triton
    from ..kernels import tuned
    from .traffic_model_plans import moments_from
    from .traffic_model_recorder import Recorder

    out = None if workload.classes is not None else output_shape(workload)
    with FakeTensorMode(), tuned.choosing_for(machine.gpu, machine.family), ExitStack() as stack:
        if workload.device.type == "cuda":
            # fake tensors are on no device, and the kernels are a GPU's
            rows = rows_per_channel(workload.device, workload.autocast or torch.float32)
            stack.enter_context(moments_from(rows))
        module = with_channels_last(workload.build(not workload.inference))
        module.train(not workload.inference)
        dtype = workload.autocast if workload.input_gradients else None
        inputs = tuple(
            torch.empty(shape, dtype=dtype).contiguous(memory_format=torch.channels_last)
            for shape in workload.shapes
        )
        for x in inputs:
            x.requires_grad_(workload.input_gradients)
        target = torch.zeros(workload.batch, dtype=torch.int64)
        if out is not None:
            target = torch.empty(out, dtype=dtype)
            target = target.contiguous(memory_format=torch.channels_last)
        step = make_step(replace(workload, device=CPU), module, [Batch(inputs, target)])
        recorder = Recorder(module)
        with recorder:
            step.run(step.batches[0])
    if not workload.inference:
        return recorder.operations
    return list(_with_epilogues(recorder.operations, (workload.autocast or torch.float32).itemsize))


def _with_epilogues(operations: Iterable[Operation], itemsize: int) -> Iterable[Operation]:
    """Operators of PyTorch's forward pass as they are where every convolution normalises, adds the
    shortcut and rectifies before it writes."""
    for operation in operations:
        if operation.name in ("convolution", "mean", "addmm", "mm"):
            yield operation
        elif operation.name == "add_":
            # the shortcut is read by the convolution
            yield replace(operation, read=operation.read // 2, written=0)
        elif operation.name.startswith("max_pool2d"):
            # the indices are for a backward pass
            values = operation.written * itemsize // (itemsize + 8)
            yield replace(operation, written=values)
