"""Fused operators, forward and backward, at the layers of ResNet-50 on a CPU (batch 8)."""

from __future__ import annotations

from functools import partial

import pytest

from fastres.bench import EAGER, FUSED, cases
from fastres.bench.case import Case

BATCH, ROUNDS = 8, 11
IMPLEMENTATIONS = (EAGER, FUSED, "eager NCHW")

CASES = {
    **{
        f"{'bn_act' if kind is None else f'bn_add_act {kind}'} {layer} {dtype}": Case(
            partial(cases.join, kind, layer, BATCH, dtype),
            ROUNDS,
        )
        for kind, layer in (
            (None, "stem"), (None, "layer3"), ("identity", "layer1"), ("bn", "layer2"),
            ("pad", "layer2"),
        )
        for dtype in ("fp32", "bf16")
    },
    **{
        f"conv_bn_act {layer} {dtype}": Case(
            partial(cases.convolution, layer, BATCH, dtype), ROUNDS
        )
        for layer in (
            "layer1 1x1 reduce", "layer1 3x3", "layer1 1x1 expand", "layer3 3x3",
        )
        for dtype in ("fp32", "bf16")
    },
}  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_operator(show, name, implementation):
    show(name, CASES[name], implementation)
