"""A training step of a script that knows nothing of fastres, run by `fastres run`, on a CPU.

torchvision's ResNet-50 with weights and images as such a script leaves them, NCHW in fp32, beside
the same network fused as it is constructed.
"""

from __future__ import annotations

from functools import partial

import pytest

from fastres.bench import cases
from fastres.bench.case import Case
from fastres.bench.peers import EAGER, EAGER_NCHW, FUSED, FUSED_NCHW

pytest.importorskip("torchvision")

NAME = "torchvision resnet50 fp32, NCHW script"
CASE = Case(
    partial(cases.network, "torchvision.resnet50", 16, 224, "fp32"),
    11,
    extra=(EAGER_NCHW, FUSED_NCHW),
)
LEAST = 1.4


@pytest.mark.parametrize("implementation", [EAGER, FUSED, EAGER_NCHW, FUSED_NCHW])
def test_untouched_script(show, implementation):
    comparison = show(NAME, CASE, implementation)
    if implementation == FUSED_NCHW:
        ratio = comparison.ratio(FUSED_NCHW, EAGER_NCHW)
        assert ratio.value >= LEAST, f"{ratio} times faster than the untouched script"
