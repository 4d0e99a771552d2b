"""Residual blocks, forward and backward, on a CPU."""

from __future__ import annotations

from functools import partial

import pytest

from fastres.bench import EAGER, FUSED, cases
from fastres.bench.case import Case

COMPILE = "torch.compile"
SLOW = "on a CPU it takes half a minute to compile a block; one block and one network have it"
IMPLEMENTATIONS = (EAGER, FUSED, "eager NCHW", COMPILE)
BATCH, ROUNDS = 16, 15

CASES = {
    "bottleneck layer1 fp32": Case(
        partial(cases.block, "bottleneck", BATCH, 56, 64), ROUNDS, skipped={COMPILE: SLOW}
    ),
    "bottleneck layer1 bf16": Case(
        partial(cases.block, "bottleneck", BATCH, 56, 64, "bf16"), ROUNDS, skipped={COMPILE: SLOW}
    ),
    "bottleneck layer3 fp32": Case(
        partial(cases.block, "bottleneck", BATCH, 14, 256),
        ROUNDS,
        extra=("eager NCHW", COMPILE),
    ),
    "basic layer2 fp32": Case(
        partial(cases.block, "basic", BATCH, 28, 128), ROUNDS, skipped={COMPILE: SLOW}
    ),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_block(show, name, implementation):
    show(name, CASES[name], implementation)
