"""Settings of every test: Triton's interpreter where there is no GPU, fixed seeds, few threads."""

from __future__ import annotations

import os

# one thread here and in every process that a test starts: sums depend on the number of threads
os.environ["OMP_NUM_THREADS"] = "1"

import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # read once, when triton is imported: nothing may import it before this line
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402

# two runs must draw the same examples
settings.register_profile(
    "fastres",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastres")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if HAS_GPU:
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
