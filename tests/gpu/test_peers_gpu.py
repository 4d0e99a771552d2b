"""Every implementation that runs on this GPU passes the parity check; profiles and searches run."""

from __future__ import annotations

import os

import pytest
import torch

from fastres.bench import EAGER, FUSED, Comparison, cases, largest_batch, peers, profile
from fastres.bench import traffic_model_machines as machines
from fastres.bench.compare import MEASURED
from fastres.bench.peers import PEERS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") == "1", reason="TRITON_INTERPRET=1 is for CPU tensors"
    ),
]
DEVICE = torch.device("cuda")
# JAX starts threads, after which no other test may fork without a warning
HERE = [name for name in PEERS if name != peers.FLAX and not PEERS[name].bound]


def entry_of(workload, name):
    reason = PEERS[name].unavailable(workload)
    if reason is not None:
        pytest.skip(reason)
    comparison = Comparison(workload)
    comparison.prepare(name)
    comparison.check()
    return comparison.entries[name]


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_training_steps_agree(name, dtype):
    workload = cases.network("bottleneck14", 8, 64, dtype, optimizer=True, device=DEVICE)
    entry = entry_of(workload, name)
    assert entry.status == MEASURED, entry.reason


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_forward_passes_agree(name, dtype):
    entry = entry_of(cases.inference("bottleneck14", 8, 64, dtype, device=DEVICE), name)
    assert entry.status == MEASURED, entry.reason


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["layer", "block"])
def test_cudnn_s_fused_engines_agree(kind, dtype):
    workload = cases.block("bottleneck", 8, 14, 64, dtype, device=DEVICE)
    if kind == "layer":
        workload = cases.convolution("layer3 3x3", 8, dtype, device=DEVICE)
    entry = entry_of(workload, peers.CUDNN)
    if "NotSupported" in (entry.reason or ""):
        pytest.skip(entry.reason)
    assert entry.status == MEASURED, entry.reason


@pytest.mark.parametrize("name", [FUSED, EAGER])
def test_kernels_find_their_operators(name):
    workload = cases.network("bottleneck14", 16, 64, "bf16", optimizer=True, device=DEVICE)
    found = profile.profile(PEERS[name].make(workload), machines.known("H200", "bf16"))
    convolutions = "fastres::conv_stats" if name == FUSED else "aten::convolution"
    rows = {row.operator: row for row in found.operators}
    assert rows[convolutions].seconds > 0
    kernels = sum(row.seconds for row in found.operators if row.operator != profile.BETWEEN)
    assert 0 < kernels <= 1.5 * found.step_seconds


def test_the_largest_batch_within_a_part_of_the_memory():
    found = largest_batch.search(
        [FUSED], "resnet20", 32, "bf16", device=DEVICE, start=64, limit_bytes=2**28, precision=0.5
    )["implementations"][FUSED]
    assert found["limit"] == largest_batch.OOM
    assert found["batch"] is not None
    assert any("out of memory" in reason for _, ok, reason in found["tried"] if not ok)
