"""Training steps (forward, loss, backward) on a CPU, and what they must reach."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastres.bench import EAGER, FUSED, cases, memory, table
from fastres.bench.case import Case, keep_memory_reason

COMPILE = "torch.compile"
NCHW = "eager NCHW"
SLOW = (
    "on a CPU it takes minutes to compile an ImageNet network, whose step is then several times "
    "slower than eager; CIFAR ResNet-20 and one block have it"
)
IMPLEMENTATIONS = (EAGER, FUSED, NCHW, COMPILE)

# name: network, batch, image size, dtype, rounds
NETWORKS = {
    "resnet50 fp32": ("resnet50", 16, 224, "fp32", 13),
    "resnet50 bf16": ("resnet50", 16, 224, "bf16", 13),
    "resnet18 fp32": ("resnet18", 16, 224, "fp32", 11),
    "cifar resnet20 fp32": ("resnet20", 128, 32, "fp32", 25),
}
# times faster than a peer, at least
TARGETS = {
    "resnet50 fp32": {EAGER: 1.10, NCHW: 1.40},
    "resnet50 bf16": {EAGER: 1.05},
    "cifar resnet20 fp32": {EAGER: 1.15},
}


def _memory(name: str, implementation: str):
    threads = torch.get_num_threads()
    return memory.cpu_peak(implementation, *NETWORKS[name][:4], threads=threads)


def _case(name: str) -> Case:
    *network, rounds = NETWORKS[name]
    cifar = name.startswith("cifar")
    measured = name in TARGETS and memory.cpu_unavailable() is None
    return Case(
        partial(cases.network, *network),
        rounds,
        extra=(NCHW, COMPILE) if cifar else (NCHW,),
        skipped={} if cifar else {COMPILE: SLOW},
        memory={who: partial(_memory, name, who) for who in (EAGER, FUSED)} if measured else None,
    )


CASES = {name: _case(name) for name in NETWORKS}

# Much of what eager PyTorch loses on a CPU is page faults. These tell how much: with an allocator
# that keeps what it has, as a user can have by setting MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_.
KEPT = {
    f"{name}, malloc keeps memory": Case(
        partial(cases.network, *NETWORKS[name][:4]), rounds, extra=(), keep_memory=True
    )
    for name, rounds in (("resnet50 fp32", 9), ("cifar resnet20 fp32", 25))
}


@pytest.mark.skipif(keep_memory_reason() is not None, reason=str(keep_memory_reason()))
@pytest.mark.parametrize("implementation", [EAGER, FUSED])
@pytest.mark.parametrize("name", KEPT)
def test_without_page_faults(show, name, implementation):
    show(name, KEPT[name], implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_training_step(show, name, implementation):
    comparison = show(name, CASES[name], implementation)
    if implementation != FUSED:
        return
    missed = []
    for peer, target in TARGETS.get(name, {}).items():
        ratio = comparison.ratio(FUSED, peer)
        if ratio.value < target:
            missed.append(f"{ratio} times faster than {peer}, must be {target}")
    ours, eager = (comparison.entries[who].memory.get("peak_bytes") for who in (FUSED, EAGER))
    if ours is not None and ours > eager:
        missed.append(f"{table.size(ours)} at the peak, eager takes {table.size(eager)}")
    assert not missed, f"{name}: {'; '.join(missed)}"
