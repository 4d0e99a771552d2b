"""Training steps and operators on a GPU; benchmarks/gpu_suite.py measures more of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from fastres.bench import EAGER, FUSED, cases
from fastres.bench.case import Case

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: the GPU part is not measured"
)

GRAPHS = ("eager CUDA graph", "fastres CUDA graph")
COMPILE = "torch.compile"
CUDA = torch.device("cuda")

NETWORKS = {
    "gpu resnet50 bf16": ("resnet50", 256, 224, "bf16"),
    "gpu resnet50 fp16": ("resnet50", 256, 224, "fp16"),
    "gpu cifar resnet20 bf16": ("resnet20", 128, 32, "bf16"),
}
TRAINING = {
    name: Case(
        partial(cases.network, *network, device=CUDA, optimizer=True),
        20,
        extra=(*GRAPHS, COMPILE),
    )
    for name, network in NETWORKS.items()
}
OPERATORS = {
    **{
        f"gpu {kind or 'bn_act'} {layer}": Case(
            partial(cases.join, kind, layer, 128, "bf16", device=CUDA), 15, extra=()
        )
        for kind in (None, *cases.JOINS)
        for layer in ("layer1", "layer3")
    },
    **{
        f"gpu conv_bn_act {layer}": Case(
            partial(cases.convolution, layer, 128, "bf16", device=CUDA), 15, extra=()
        )
        for layer in ("layer1 1x1 expand", "layer1 3x3", "layer3 3x3")
    },
}


@pytest.mark.parametrize("implementation", [EAGER, FUSED, *GRAPHS, COMPILE])
@pytest.mark.parametrize("name", TRAINING)
def test_training_step(show, name, implementation):
    show(name, TRAINING[name], implementation)


@pytest.mark.parametrize("implementation", [EAGER, FUSED])
@pytest.mark.parametrize("name", OPERATORS)
def test_operator(show, name, implementation):
    show(name, OPERATORS[name], implementation)
