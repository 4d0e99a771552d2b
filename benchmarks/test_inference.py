"""Forward passes in eval mode on a CPU: `fastres.optimize` beside PyTorch."""

from __future__ import annotations

from functools import partial

import pytest

from fastres.bench import EAGER, FUSED, Comparison, cases
from fastres.bench.case import Case
from fastres.bench.peers import FROZEN, OPTIMIZED

IMPLEMENTATIONS = (EAGER, OPTIMIZED, FROZEN, FUSED)

# name: network, batch, image size, dtype, rounds
NETWORKS = {
    "resnet50 fp32 inference, batch 1": ("resnet50", 1, 224, "fp32", 41),
    "resnet50 fp32 inference, batch 16": ("resnet50", 16, 224, "fp32", 15),
    "resnet50 bf16 inference, batch 1": ("resnet50", 1, 224, "bf16", 41),
    "resnet50 bf16 inference, batch 16": ("resnet50", 16, 224, "bf16", 15),
}
# times faster than eager channels_last, at least
TARGETS = {name: 1.3 for name in NETWORKS if "fp32" in name}

CASES = {
    name: Case(partial(cases.inference, *network), rounds, extra=(OPTIMIZED, FROZEN))
    for name, (*network, rounds) in NETWORKS.items()
}


def _require(name: str, comparison: Comparison) -> None:
    eager = comparison.ratio(OPTIMIZED, EAGER)
    target = TARGETS.get(name, 1.0)
    assert eager.value >= target, f"{name}: {eager} times faster than eager, must be {target}"
    frozen = comparison.ratio(OPTIMIZED, FROZEN)
    # None: there is no compiler here
    assert frozen is None or frozen.high >= 1.0, f"{name}: {frozen} times faster than {FROZEN}"


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_inference(show, name, implementation):
    comparison = show(name, CASES[name], implementation)
    if implementation == OPTIMIZED:
        _require(name, comparison)
