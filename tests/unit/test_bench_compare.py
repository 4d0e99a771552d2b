"""No speed for wrong numbers: the parity gate, peers that cannot run, what is recorded."""

from __future__ import annotations

import io
import json
import math
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from fastres.bench import (
    EAGER,
    FUSED,
    Comparison,
    cases,
    compare,
    environment,
    memory,
    peers,
    table,
    traffic,
)
from fastres.bench.case import Case, keep_memory_reason
from fastres.bench.compare import FAILED, MEASURED, REFUSED, SKIPPED
from fastres.bench.parity import judge, reference_step
from fastres.bench.peers import PEERS, Peer
from fastres.bench.workload import Observation


@pytest.fixture
def workload():
    return cases.network("resnet20", 4, 16)


def planted(name: str, spoil) -> Peer:
    """An implementation that is eager PyTorch but for `spoil(step)`."""

    def make(workload):
        step = PEERS[EAGER].make(workload)
        spoil(step)
        return step

    return Peer(name, make, lambda workload: None)


def wrong_eps(step):
    for module in step.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-2


def wrong_gradient(step):
    step.module.fc.weight.register_hook(lambda gradient: 1.05 * gradient)


def no_running_statistics(step):
    for module in step.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0


def nan_output(step):
    step.module.register_forward_hook(lambda module, inputs, out: out * float("nan"))


@pytest.mark.parametrize("spoil", [wrong_eps, wrong_gradient, no_running_statistics, nan_output])
def test_an_implementation_with_an_error_gets_no_speed(workload, spoil):
    comparison = Comparison(workload)
    comparison.prepare(planted("wrong", spoil), FUSED)
    comparison.measure(2)
    wrong = comparison.entries["wrong"]
    assert wrong.status == REFUSED
    assert wrong.samples == []
    assert "relative error" in wrong.reason
    assert comparison.ratio("wrong") is None
    row = comparison.as_dict()["implementations"]["wrong"]
    assert "seconds" not in row
    assert "per_second" not in row
    assert comparison.entries[FUSED].status == MEASURED
    assert len(comparison.entries[FUSED].samples) == 2


def test_one_that_raises_is_noted_and_the_others_go_on(workload):
    def broken(workload):
        raise ArithmeticError("no such luck")

    comparison = Comparison(workload)
    comparison.prepare(Peer("broken", broken, lambda workload: None), FUSED)
    comparison.check()
    assert comparison.entries["broken"].status == FAILED
    assert "ArithmeticError: no such luck" in comparison.entries["broken"].reason
    assert comparison.entries[FUSED].status == MEASURED


def test_one_that_takes_too_long_is_skipped_with_the_reason(workload):
    def endless(workload):
        while True:
            math.sqrt(2.0)

    comparison = Comparison(workload)
    comparison.prepare(Peer("endless", endless, lambda workload: None), limit=0.2)
    assert comparison.entries["endless"].status == SKIPPED
    assert "not ready in time" in comparison.entries["endless"].reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_graphs_are_skipped_with_a_reason(workload):
    comparison = Comparison(workload)
    comparison.prepare("eager CUDA graph")
    assert comparison.entries["eager CUDA graph"].status == SKIPPED
    assert "CUDA device" in comparison.entries["eager CUDA graph"].reason


def test_an_unknown_implementation_is_named():
    with pytest.raises(ValueError, match="implementation must be one of"):
        peers.get("magic")


@pytest.mark.parametrize("optimizer", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_networks_agree(dtype, optimizer):
    comparison = Comparison(cases.network("basic10", 2, 32, dtype, optimizer=optimizer))
    comparison.prepare(FUSED, "eager NCHW")
    comparison.check()
    assert {entry.status for entry in comparison.entries.values()} == {MEASURED}


def test_fp16_finds_a_loss_scale_without_overflow():
    workload = replace(cases.network("resnet20", 2, 16, "fp16", optimizer=True), loss_scale=2.0**40)
    comparison = Comparison(workload)
    comparison.prepare()
    comparison.check()
    assert comparison.workload.loss_scale < 2.0**40
    assert comparison.entries[EAGER].verdict.agrees


@pytest.mark.parametrize("kind", [None, *cases.JOINS])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_operators_agree(kind, dtype):
    comparison = Comparison(cases.join(kind, "layer4", 2, dtype))
    comparison.prepare(FUSED)
    comparison.check()
    assert comparison.entries[FUSED].status == MEASURED


@pytest.mark.parametrize("layer", ["conv1 7x7", "layer4 3x3"])
def test_convolutions_agree(layer):
    comparison = Comparison(cases.convolution(layer, 1, "bf16"))
    comparison.prepare(FUSED)
    comparison.check()
    assert comparison.entries[FUSED].status == MEASURED


def test_blocks_agree():
    comparison = Comparison(cases.block("basic", 2, 8, 16))
    comparison.prepare(FUSED)
    comparison.check()
    assert comparison.entries[FUSED].status == MEASURED


def test_compiled_networks_run(workload):
    comparison = Comparison(workload)
    comparison.prepare("torch.compile (aot_eager)")
    comparison.check()
    entry = comparison.entries["torch.compile (aot_eager)"]
    assert entry.status == MEASURED, entry.reason


def test_steps_start_from_equal_weights_whatever_ran_before(workload):
    first = PEERS[EAGER].make(workload).observe()
    torch.randn(7)
    second = PEERS[EAGER].make(workload).observe()
    assert all(torch.equal(first.tensors[name], second.tensors[name]) for name in first.tensors)


def test_judge_names_missing_tensors(workload):
    reference = reference_step(workload)
    some = Observation(dict(list(reference.tensors.items())[:-1]))
    verdict = judge(some, reference, reference, torch.float32)
    assert not verdict.agrees
    assert "one side only" in verdict.reason


def test_record_and_table(workload):
    comparison = Comparison(workload)
    comparison.prepare(FUSED, "eager CUDA graph")
    comparison.measure(3)
    row = comparison.as_dict()["implementations"][FUSED]
    assert row["seconds"]["samples"] == 3
    assert set(row["times_faster_than"]) == {EAGER}
    assert row["first_call_seconds"] > 0
    json.dumps(comparison.as_dict(), allow_nan=False)
    text = io.StringIO()
    table.comparison_table(comparison, text)
    lines = text.getvalue().splitlines()
    assert "3 interleaved rounds" in lines[0]
    assert any(line.startswith(FUSED) for line in lines)


def test_brackets_in_a_table_are_text():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    pytest.importorskip("rich")
    shown = Terminal()
    table.print_table("a [red]title", ["name", "[b]count"], [["[red]cat", "1"]], shown)
    assert all(text in shown.getvalue() for text in ("[red]title", "[b]count", "[red]cat"))


@pytest.mark.parametrize("keep_memory", [False, True])
def test_a_case_is_measured_once_in_a_process_of_its_own(keep_memory):
    if keep_memory and keep_memory_reason() is not None:
        pytest.skip(keep_memory_reason())
    case = Case(
        partial(cases.network, "resnet20", 4, 16), 2, extra=("eager CUDA graph",),
        memory={FUSED: lambda: {"peak_bytes": 5}}, keep_memory=keep_memory,
    )  # fmt: skip
    comparison = case()
    assert comparison is case()
    ours = comparison.entries[FUSED]
    assert ours.memory == {"peak_bytes": 5}
    assert ours.step is None
    assert ours.page_faults is not None
    assert len(ours.samples) == 2
    assert comparison.ratio() is not None


def test_times_come_before_the_reference(workload, monkeypatch):
    """The reference in fp64 leaves memory behind that saves eager PyTorch its page faults."""
    happened = []
    comparison = Comparison(workload)
    measured = compare.interleave
    monkeypatch.setattr(
        compare, "interleave", lambda *a, **k: (happened.append("times"), measured(*a, **k))[1]
    )
    monkeypatch.setattr(
        compare, "reference_step", lambda w: (happened.append("reference"), reference_step(w))[1]
    )
    comparison.prepare(FUSED)
    comparison.measure(1)
    assert happened == ["times", "reference"]


def test_saved_bytes_counts_what_autograd_keeps():
    workload = cases.join(None, "layer4", 2)
    element = 2 * 2048 * 7 * 7 * 4
    eager = memory.saved_bytes(PEERS[EAGER].make(workload))
    fused = memory.saved_bytes(PEERS[FUSED].make(workload))
    # y is an input; eager keeps the output of its in-place ReLU, fastres recomputes the mask
    assert element <= eager < 1.1 * element
    assert fused < 0.1 * element


@pytest.mark.skipif(memory.cpu_unavailable() is not None, reason="needs /proc/self/status")
def test_peak_of_a_fresh_process():
    found = memory.cpu_peak(FUSED, "resnet20", 4, 16, "fp32", threads=1, steps=1)
    assert found["peak_bytes"] > 0
    assert found["saved_bytes"] > 0


def test_a_failed_measurement_of_memory_says_why():
    with pytest.raises(RuntimeError, match="resnet21"):
        memory.cpu_peak(FUSED, "resnet21", 4, 16, "fp32", threads=1)


def test_environment():
    facts = environment.record(torch.device("cpu"))
    assert facts["device"]["cpu"]["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__
    assert facts["backend"]["float32"] in ("native", "triton", "reference")
    json.dumps(facts)
    slug = environment.slug(torch.device("cpu"))
    assert slug == slug.lower()
    assert slug.endswith("threads")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("env/bin/fastres", "fastres bench op"),
        ("/env/bin/fastres", "fastres bench op"),
        ("/somewhere/fastres/__main__.py", "-m fastres bench op"),
        ("benchmarks/gpu_suite.py", "benchmarks/gpu_suite.py bench op"),
    ],
)
def test_the_command_names_no_folder_of_the_machine(monkeypatch, program, expected):
    monkeypatch.setattr(sys, "argv", [program, "bench", "op"])
    assert environment.command() == expected


def test_ceilings():
    device = torch.device("cpu")
    assert traffic.copy_bandwidth(device, 2**16, 2) > 0
    assert traffic.product_rate(device, torch.float32, 16, 2) > 0


def test_the_convolutions_alone_are_a_bound_and_not_compared():
    comparison = Comparison(cases.network("resnet20", 4, 16, "bf16"))
    comparison.prepare(peers.CONVOLUTIONS)
    comparison.measure(2)
    entry = comparison.entries[peers.CONVOLUTIONS]
    assert len(entry.samples) == 2
    assert entry.verdict is None
    assert comparison.entries[peers.EAGER].verdict.agrees
    convolutions = entry.step._convolutions if entry.step else []
    assert len(convolutions) == 19
    assert [c.need_dx for c in convolutions] == [False] + [True] * 18
    assert {c.x.dtype for c in convolutions} == {torch.bfloat16}
