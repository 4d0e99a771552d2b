"""What a training step keeps from its forward to its backward pass, block by block."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from fastres.bench import EAGER, FUSED, cases, memory, peers
from fastres.bench.table import print_table
from fastres.bench.workload import Batch, Step, Workload, make_batches
from fastres.layers import BasicBlock, Bottleneck

NETWORK, BATCH, SIZE = "resnet50", 16, 224
GPU_BATCH = 128
# of eager's bytes on the bottlenecks, at most: set by the project beforehand
TARGET = 0.55


def _module(workload: Workload, implementation: str, keep: str) -> nn.Module:
    module = peers.get(implementation).make(replace(workload, buffers=1)).module
    for block in module.modules():
        if isinstance(block, (BasicBlock, Bottleneck)):
            block.memory = keep
    return module


def _block_inputs(workload: Workload) -> dict[str, tuple[int, ...]]:
    """The size of every block's input by the block's name, found without any data."""
    found: dict[str, tuple[int, ...]] = {}

    def look(name: str):
        def hook(_module, inputs):
            found[name] = tuple(inputs[0].shape)

        return hook

    with torch.device("meta"), torch.no_grad():
        module = workload.build(False)
        for name, block in module.named_modules():
            if isinstance(block, (BasicBlock, Bottleneck)):
                block.register_forward_pre_hook(look(name))
        module(torch.empty(workload.shapes[0]))
    return found


def _kept_by_blocks(workload: Workload, module: nn.Module) -> dict[str, int]:
    """Bytes that each block keeps beside its input, which the block before it keeps."""
    kept = {}
    for name, shape in _block_inputs(workload).items():
        x = torch.randn(shape, device=workload.device, dtype=workload.autocast or torch.float32)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        alone = replace(workload, name=name, shapes=(shape,), classes=None, input_gradients=True)
        step = Step(alone, module.get_submodule(name), [Batch((x,), x)])
        kept[name] = memory.saved_bytes(step)
    return kept


def _kept(workload: Workload, implementation: str, keep: str = "fast") -> dict[str, int]:
    """Bytes of every block, and of the whole network as one step keeps them."""
    module = _module(workload, implementation, keep)
    kept = _kept_by_blocks(workload, module)
    whole = Step(workload, module, make_batches(workload, torch.channels_last, count=1))
    return {**kept, "all blocks": sum(kept.values()), "network": memory.saved_bytes(whole)}


@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("keep", ["fast", "low"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_kept_for_backward(request, benchmark, dtype, keep):
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = GPU_BATCH if device.type == "cuda" else BATCH
    workload = cases.network(NETWORK, batch, SIZE, dtype, device=device)
    eager = _kept(workload, EAGER)
    ours = benchmark.pedantic(_kept, args=(workload, FUSED, keep), rounds=1, iterations=1)
    rows = [
        [name, f"{there / 2**20:.1f}", f"{ours[name] / 2**20:.1f}", f"{ours[name] / there:.3f}"]
        for name, there in eager.items()
    ]
    title = f"\n{workload.name}, memory={keep!r}: kept for the backward pass"
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print_table(title, ["", "eager, MiB", "fastres, MiB", "of eager"], rows)
    benchmark.extra_info["kept, bytes"] = {EAGER: eager, FUSED: ours}
    ratio = ours["all blocks"] / eager["all blocks"]
    benchmark.extra_info["of eager, all blocks"] = ratio
    assert ratio <= TARGET, f"the blocks keep {ratio:.3f} of what eager keeps"


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="the allocator's peak is a CUDA allocator's; no GPU"
)
@pytest.mark.benchmark(timer=time.perf_counter)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_allocator_peak(request, benchmark, dtype):
    workload = cases.network(
        NETWORK, GPU_BATCH, SIZE, dtype, device=torch.device("cuda"), optimizer=True
    )
    peaks = {}
    for implementation in (EAGER, FUSED):
        step = peers.get(implementation).make(replace(workload, buffers=1))
        step(0)  # the momentum is there before anything is measured
        peaks[implementation] = memory.cuda_peak(step)["peak_bytes"]
        del step
    benchmark.pedantic(lambda: None, rounds=1, iterations=1)
    benchmark.extra_info["peak, bytes"] = peaks
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        rows = [[name, f"{peak / 2**20:.0f}"] for name, peak in peaks.items()]
        print_table(f"\n{workload.name}: allocator's peak", ["", "MiB"], rows)
    assert peaks[FUSED] < peaks[EAGER]
