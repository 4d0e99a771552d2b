"""The Triton backend as a whole: what it needs, what it picks, what it launches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from parity.oracle import ATOL, assert_parity, launch_join, make_join, run_join

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="needs TRITON_INTERPRET=1"
)

import fastres  # noqa: E402
from fastres import backends  # noqa: E402
from fastres.backends import ops, reference  # noqa: E402
from fastres.backends import triton as backend  # noqa: E402
from fastres.backends import triton_layers as layers  # noqa: E402
from fastres.kernels import launch, tuned  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def run_python(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", code], env=clean | environment, check=True, capture_output=True,
        text=True,
    ).stdout.strip()  # fmt: skip


def test_every_launch_operator_is_here():
    assert all(callable(getattr(backend, name)) for name in ops.SCHEMAS)


def test_importing_fastres_imports_no_triton():
    code = "import sys, fastres, fastres.backends.triton; print('triton' in sys.modules)"
    assert run_python(code) == "False"


def test_usable_says_why_not():
    assert backend.usable(CPU, torch.float32) is None
    assert "dtype must be" in backend.usable(CPU, torch.int32)
    assert "NVIDIA" in backend.usable(torch.device("meta"), torch.float32)
    code = (
        "import torch; from fastres.backends import triton as b; "
        "print(b.usable(torch.device('cpu'), torch.float32))"
    )
    assert "TRITON_INTERPRET" in run_python(code)
    assert run_python(code, TRITON_INTERPRET="1") == "None"
    late = "import os, triton; os.environ['TRITON_INTERPRET'] = '1'; " + code
    assert "before Triton is imported" in run_python(late)


@pytest.mark.parametrize("kind", ["none", "identity", "bn", "pad"])
def test_forced_backend_runs_our_kernels(kind):
    join = make_join(kind, torch.float32, 5)
    backends.reset_counts()
    launch.launched.clear()
    with fastres.backend("triton"):
        ours = launch_join(join, torch.ops.fastres)
    assert_parity(
        ours, run_join(join, torch.float32), run_join(join, torch.float64), ATOL[torch.float32]
    )
    branches = 2 if kind == "bn" else 1
    assert backends.counts() == {
        "bn_stats:triton": branches,
        "bn_apply:triton": 1,
        "bn_backward_reduce:triton": 1,
        "bn_backward:triton": 1,
    }
    # the fewest passes: one over y for its statistics, one forward, two backward
    assert launch.launched == {
        "bn_stats_kernel": branches,
        "merge_statistics_kernel": branches,
        "bn_apply_kernel": 1,
        "bn_backward_reduce_kernel": 1,
        "sum_partials_kernel": 1,
        "bn_backward_kernel": 1,
    }


def test_fused_convolution_is_one_launch_and_a_merge():
    x, weight = torch.randn(2, 4, 5, 5), torch.randn(6, 4, 1, 1)
    prologue = [torch.randn(4), torch.rand(4), None, None]
    launch.launched.clear()
    with tuned.provider("triton"):
        backend.conv_stats(x, weight, [1, 1], [0, 0], [1, 1], 1, *prologue, True)
    assert launch.launched == {"conv1x1_kernel": 1, "merge_statistics_kernel": 1}


@pytest.mark.parametrize("kind", ["none", "identity", "bn", "pad"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_conv_bn_backward_matches_the_reference(kind, dtype):
    join = make_join(kind, dtype, 6, size=(4, 4))
    x, weight = torch.randn(2, 3, 4, 4).to(dtype), torch.randn(6, 3, 3, 3).to(dtype)
    vector = torch.rand(6) + 0.5
    branch = [join.shortcut, vector, vector, join.s_weight, vector] if kind == "bn" else [None] * 5
    out = join.y if kind != "none" else None
    size = [] if join.shortcut is None else list(join.shortcut.shape)
    arguments = (
        join.dout, out, join.y, vector, vector, join.weight, join.bias, vector, vector, *branch,
        size, join.stride, True, x, weight, [1, 1], [1, 1], [1, 1], 1, True, True,
    )  # fmt: skip
    ours = backend.conv_bn_backward(*arguments)
    expected = reference.conv_bn_backward(*arguments)
    for mine, theirs in zip(ours, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-2, atol=ATOL[dtype] * 20)


def test_opcheck():
    join = make_join("identity", torch.float32, 4)
    mean, var = join.running
    with fastres.backend("triton"):
        torch.library.opcheck(torch.ops.fastres.bn_stats.default, (join.y,))
        torch.library.opcheck(
            torch.ops.fastres.bn_apply.default,
            (join.y, mean, var, None, None, join.shortcut, None, None, None, None, 1, True),
        )
        torch.library.opcheck(
            torch.ops.fastres.bn_backward_reduce.default,
            (join.dout, join.y, join.y, mean, var, None, None, None, None, None, True),
        )


def test_too_many_rows_are_refused():
    y = torch.empty(1).expand(2**16, 1, 2**8, 2**8)
    with pytest.raises(ValueError, match=r"N\*H\*W must be at most"):
        launch.rows_of(y)


def test_tables_are_complete():
    files = sorted(tuned.CONFIGS.glob("*.json"))
    assert {path.name for path in files} >= {"default.json", "h200.json"}
    for path in files:
        for row in json.loads(path.read_text())["rows"]:
            assert row["provider"] in ("triton", "cudnn"), row
            assert set(row["families"]) <= set(tuned.FAMILIES), row
            assert row["reason"], row
            # a row that was not measured says that it is a judgement
            assert row["measured"] is not None or row["reason"].startswith("heuristic"), row
    for chip in tuned.FAMILIES:
        for dtype in ("float16", "bfloat16", "float32"):
            for operator in ("bn_stats", "bn_apply", "bn_backward_reduce", "bn_backward"):
                assert tuned._nearest(None, chip, operator, dtype, False, ())
            for operator in ("conv1x1", "conv3x3"):
                for prologue in (False, True):
                    shape = (("inner", 64), ("outer", 64))
                    assert tuned._nearest(None, chip, operator, dtype, prologue, shape)


def test_nearest_row_and_a_gpus_own_rows():
    def blocks(gpu, outer, inner):
        shape = (("inner", inner), ("outer", outer))
        return tuned._nearest(gpu, "sm_90", "conv1x1", "float16", True, shape).config["BLOCK_N"]

    assert blocks(None, 64, 64) == blocks(None, 2048, 256) == 64
    assert blocks(None, 64, 512) == blocks(None, 2048, 4096) == 128
    # the H200's row for 256 channels in is nearer than the default's for 1024
    assert blocks("NVIDIA H200", 1024, 360) == 64
    assert blocks("NVIDIA A100-SXM4-80GB", 1024, 370) == 128
    with pytest.raises(LookupError, match="no row for operator conv1x1, dtype float64"):
        tuned.choose("conv1x1", CPU, torch.float64)


def test_provider_is_forced_and_restored():
    def chosen():
        return tuned.choose("conv3x3", CPU, torch.float32, inner=4, outer=4).provider

    before = chosen()
    with tuned.provider("triton"):
        assert chosen() == "triton"
        # only convolutions have another provider
        assert tuned.choose("bn_stats", CPU, torch.float32).provider == "triton"
    assert chosen() == before
    expected = pytest.raises(ValueError, match="name must be triton or cudnn, got 'cublas'")
    with expected, tuned.provider("cublas"):
        pass


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        ((8, 0), "sm_80"),
        ((8, 6), "sm_120"),
        ((8, 9), "sm_120"),
        ((9, 0), "sm_90"),
        ((10, 3), "sm_100"),
        ((12, 1), "sm_120"),
    ],
)
def test_family(capability, expected):
    assert tuned.family(capability) == expected


def test_fp32_products_follow_torch(monkeypatch):
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"
        assert not layers.uses_tf32()
        conv.fp32_precision = "tf32"
        assert layers.uses_tf32()
    finally:
        conv.fp32_precision = before
