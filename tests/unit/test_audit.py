"""The audit compiles for GPUs that are not here, and fails on what would be slow or wrong there."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="Triton ships cuobjdump for x86-64"
)


def run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
    # kernels decorated for the interpreter cannot be compiled: a process of its own without it
    clean = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    what = ["-m", "fastres.kernels.audit"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *what, *arguments], env=clean, capture_output=True, text=True
    )


@pytest.mark.slow
def test_every_kernel_and_config_passes_on_hopper(tmp_path):
    record = tmp_path / "audit.json"
    done = run("--target", "sm_90", "--json", str(record))
    assert done.returncode == 0, done.stderr
    findings = json.loads(record.read_text())["findings"]
    assert all(not finding["problems"] for finding in findings)
    kernels = {finding["kernel"] for finding in findings}
    assert kernels == {
        "bn_apply_kernel",
        "bn_backward_kernel",
        "bn_backward_reduce_kernel",
        "bn_max_pool_backward_kernel",
        "bn_max_pool_backward_reduce_kernel",
        "bn_max_pool_kernel",
        "bn_stats_kernel",
        "chain_join_kernel",
        "chain_mask_kernel",
        "conv1x1_kernel",
        "conv3x3_backward_data_kernel",
        "conv3x3_backward_weight_kernel",
        "conv3x3_kernel",
        "conv_bias_act_kernel",
        "expand_backward_data_kernel",
        "expand_backward_weight_kernel",
        "expand_kernel",
        "expand_reduce_kernel",
        "expand_rows_kernel",
        "group_sums_kernel",
        "max_pool_backward_kernel",
        "max_pool_kernel",
        "merge_statistics_kernel",
        "moment_affine_kernel",
        "moment_gradients_kernel",
        "moment_mixing_kernel",
        "moment_statistics_kernel",
        "moment_weight_kernel",
        "moments_kernel",
        "pad_shortcut_backward_kernel",
        "pad_shortcut_kernel",
        "split_sums_kernel",
        "reduce_backward_kernel",
        "sum_partials_kernel",
        "sum_rows_kernel",
    }
    for finding in findings:
        assert finding["registers"] > 0
        assert finding["wide_loads"] > 0, f"{finding['kernel']} loads less than 16 bytes at a time"
        if finding["kernel"].startswith("conv") and "float32" not in finding["config"]:
            assert finding["hgmma"] > 0, finding
    assert f"{len(findings)} kernels compiled, 0 failed" in done.stdout


def test_a_bad_config_is_named_and_fails():
    # sm_120 has 99 KiB of shared memory, five stages of 32 KiB are more
    code = """
import sys
from fastres.kernels import audit, tuned
row = dict(
    operator="conv1x1", families=["sm_120"], dtypes=["float16"], prologue=False,
    shape={"outer": 256}, provider="triton", measured=None, reason="heuristic: a test",
    config=dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=5),
)
audit.load_rows = lambda path: (None, (row,) if path.name == "default.json" else ())
sys.exit(audit.main(["--target", "sm_120", "--jobs", "1"]))
"""
    done = run(code=code)
    assert done.returncode == 1, done.stderr
    assert "FAIL conv1x1_kernel [float16 128x128x64 w8s5] on sm_120: shared memory" in done.stderr


def test_findings_are_judged():
    code = """
from fastres.kernels import audit
case = next(c for c in audit.cases(("sm_90",)) if c.signature.get("x_ptr") == "*bf16"
            and c.launch.kernel.__name__ == "conv1x1_kernel")
good = dict(kernel="conv1x1_kernel", config="", target="sm_90", products=1, hgmma=4)
for change in ({}, {"hgmma": 0}, {"spills": 3, "stack": 16}, {"shared": 300_000}):
    finding = audit.Finding(**good | change)
    audit._judge(finding, case)
    print(finding.problems)
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    none, matrix, spills, shared = done.stdout.splitlines()
    assert none == "[]"
    assert "no HGMMA" in matrix
    assert "spills: 3 accesses, 16 bytes" in spills
    assert "shared memory 300000 B, sm_90 has 232448 B" in shared


def test_interpreted_kernels_are_refused():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "fastres.kernels.audit"], env=environment, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert "unset TRITON_INTERPRET" in done.stderr


def test_the_summary_holds_the_extremes():
    code = """
from fastres.kernels.audit import Finding, summary
print(summary([
    Finding("a", "x", "sm_90", registers=40, shared=10, products=1, hgmma=8),
    Finding("a", "y", "sm_90", registers=90, shared=70, products=1, hgmma=2, spills=3),
    Finding("a", "z", "sm_90", registers=60),
    Finding("b", "x", "sm_80", registers=16),
]))
"""
    lines = run(code=code).stdout.splitlines()
    assert lines[2] == "| a | sm_90 | 3 | 40 to 90 | 3 | 70 | 2 |"
    assert lines[3] == "| b | sm_80 | 1 | 16 to 16 | 0 | 0 | – |"
