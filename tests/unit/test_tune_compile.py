"""Kernels are compiled ahead by other processes, for a GPU that need not be there."""

from __future__ import annotations

import platform

import pytest
import torch

from fastres.bench.compile_ahead import Compiler, Target, Wanted
from fastres.bench.operator_calls import Call, TensorSpec
from fastres.kernels.tuned import Choice, Key

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="Triton ships ptxas for x86-64"),
]


def test_kernels_end_up_in_tritons_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec = TensorSpec((2, 8, 4, 4), (128, 1, 32, 8), torch.bfloat16)
    call, key = Call("bn_stats", (spec,)), Key("bn_stats", "bfloat16", False, ())
    config = {"tile": 256, "programs": 64, "num_warps": 2}
    wanted = [Wanted(call), Wanted(call, key, Choice("triton", config))]
    odd = Wanted(call, key, Choice("triton", config | {"num_warps": 3}))
    with Compiler(Target("NVIDIA H200", "sm_90", 90), 1) as compiler:
        assert compiler.finish(wanted) == []
        compiled = list(tmp_path.rglob("bn_stats_kernel.cubin"))
        assert len(compiled) == 2
        (error,) = compiler.finish([odd])
        assert "bn_stats y 2x8x4x4" in error
        # asked for again, nothing is compiled again
        assert len(compiler.finish([*wanted, odd])) == 1
    assert len(list(tmp_path.rglob("bn_stats_kernel.cubin"))) == len(compiled)
