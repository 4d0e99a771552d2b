"""One case as the measuring process takes it: every kind, its events, its time, its waves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastres import cli
from fastres.bench import (
    cases,
    compare,
    floor,
    isolated,
    measure,
    memory,
    plan,
    results,
    traffic_model,
)
from fastres.bench.measure import LEAST_ROUNDS, Order
from fastres.bench.peers import EAGER, FUSED, OPTIMIZED
from fastres.bench.timing import Summary

MACHINE = traffic_model.Machine("made up", 1e11, 1e12, "made up")


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    """Processes of a measurement are this one."""
    monkeypatch.setattr(
        isolated, "call", lambda function, *a, on_event=print, seconds=None: function(on_event, *a)
    )


def order(kind, model, names=(EAGER, FUSED), **options):
    spec = plan.specs(kind, [model], [2], ["fp32"], [32], device="cpu", optimizer=False,
                      keep_memory=False)[0]  # fmt: skip
    return Order(spec, names, **{"rounds": 2, **options})


@pytest.mark.parametrize(
    ("kind", "model", "names"),
    [
        ("train", "resnet20", (EAGER, FUSED)),
        ("infer", "basic10", (EAGER, OPTIMIZED)),
        ("block", "basic/layer4", (EAGER, FUSED)),
        ("op", "bn_add_act-bn/layer4", (EAGER, FUSED)),
    ],
)
def test_every_kind_is_measured(kind, model, names):
    asked = order(kind, model, names, without={"left out": ("skipped", "too slow")})
    events = []
    found = measure.measure(events.append, asked)
    case = found.case
    assert (case["kind"], case["model"], case["image_size"], case["batch"]) == (kind, model, 32, 2)
    assert case["workload"] == asked.spec.name
    assert case["floor"] is None
    assert "torch" in case["environment"]
    assert list(case["implementations"]) == [*names, "left out"]
    for name in names:
        row = case["implementations"][name]
        assert row["status"] == "measured"
        assert len(row["seconds"]["rounds"]) == 2
        assert row["parity"]["error"] <= row["parity"]["bound"]
    assert case["implementations"]["left out"] == {"status": "skipped", "reason": "too slow"}
    assert [event[1] for event in events if event[0] == "preparing"] == list(names)
    assert [event[1:] for event in events if event[0] == "round"] == [(1, 2), (2, 2)]
    assert events[-1][0] == "note"


@pytest.mark.skipif(memory.cpu_unavailable() is not None, reason="needs /proc/self/status")
def test_memory_has_peaks_and_no_times():
    case = measure.measure(lambda event: None, order("memory", "basic10")).case
    assert case["kind"] == "memory"
    for name in (EAGER, FUSED):
        row = case["implementations"][name]
        assert row["memory"]["saved_bytes"] > 0
        assert "seconds" not in row


def test_rounds_end_with_the_time_but_not_before_there_are_some(monkeypatch):
    asked = order("op", "bn_act/layer4", rounds=500, seconds=0.01)
    case = measure.measure(lambda event: None, asked).case
    assert case["implementations"][FUSED]["seconds"]["samples"] == LEAST_ROUNDS


def test_those_that_compile_come_in_a_second_wave_on_a_gpu(monkeypatch):
    """What the first wave found is told before the second begins, which times all again."""
    compiled = "torch.compile (aot_eager)"
    asked = order("op", "bn_act/layer4", (EAGER, compiled, FUSED), seconds=100)
    timing = measure._Timing(lambda event: None, asked)
    assert timing._waves(list(asked.names)) == [list(asked.names)]
    gpu = replace(timing.comparison.workload, device=torch.device("cuda"))
    monkeypatch.setattr(timing.comparison, "workload", gpu)
    assert timing._waves(list(asked.names)) == [[EAGER, FUSED], [compiled]]
    assert timing._waves([EAGER, FUSED]) == [[EAGER, FUSED]]

    monkeypatch.setattr(measure._Timing, "_waves", lambda self, _: [[EAGER, FUSED], [compiled]])
    events = []
    case = measure.measure(events.append, asked).case
    kinds = [event[0] for event in events if event[0] != "note"]
    assert kinds == ["preparing", "preparing", "round", "round", "partial", "preparing",
                     "round", "round"]  # fmt: skip
    partial = next(event[1] for event in events if event[0] == "partial")
    assert list(partial.case["implementations"]) == [EAGER, FUSED]
    assert partial.case["implementations"][FUSED]["status"] == "measured"
    assert list(case["implementations"]) == [EAGER, compiled, FUSED]
    assert {row["status"] for row in case["implementations"].values()} == {"measured"}


def models_of(model):
    return cases.network(model, 2, 32).build(False).parameters()


def test_the_floor_is_what_the_kernels_move_and_multiply():
    pytest.importorskip("triton")
    spec = replace(order("op", "bn_act/layer4").spec, image_size=224)
    found = floor.of(spec.workload(), MACHINE)
    activation = 2 * 2048 * 7 * 7 * 4
    # forward reads it for the statistics, reads and writes it; backward reads two, twice, and
    # writes one
    assert 5 * activation <= found["bytes"] < 9 * activation
    assert found["seconds"] == pytest.approx(found["bytes"] / MACHINE.bandwidth)
    step, forward = (floor.of(order(kind, "basic10").spec.workload(), MACHINE)
                     for kind in ("train", "infer"))  # fmt: skip
    assert 2.5 < step["flops"] / forward["flops"] < 3.5
    # PyTorch's eval mode moves every activation three times: convolution, BN and ReLU
    moved = forward["bytes"] - 4 * sum(p.numel() for p in models_of("basic10"))
    activations = [(64, 16), *[(64, 8)] * 2, *[(128, 4)] * 2, *[(256, 2)] * 2, *[(512, 1)] * 2]
    written = sum(2 * 4 * channels * size**2 for channels, size in activations)
    assert 2 * written < moved < 3 * written
    # a block is a part of it, forward and backward
    block = floor.of(order("block", "basic/layer1").spec.workload(), MACHINE)
    assert 0 < block["flops"] < step["flops"]


def test_a_broken_floor_costs_no_measurement(monkeypatch, capsys):
    def broken(workload, machine):
        raise ImportError("no triton")

    monkeypatch.setattr(floor, "of", broken)
    asked = order("op", "bn_act/layer4", with_floor=True, machine=MACHINE)
    case = measure.measure(lambda event: None, asked).case
    assert case["floor"] is None
    assert case["implementations"][FUSED]["status"] == "measured"
    assert "no floor: ImportError: no triton" in capsys.readouterr().out


def test_a_baseline_that_fails_ends_the_case(monkeypatch):
    def full(self):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    monkeypatch.setattr(compare.Comparison, "_prepare_baseline", full)
    with pytest.raises(torch.OutOfMemoryError, match="80 GiB"):
        measure.measure(lambda event: None, order("op", "bn_act/layer4"))


def test_a_sweep_is_repeated_and_compared_with_itself(tmp_path, monkeypatch, capsys):
    """OLD.json alone says what to measure; the second time everything takes twice as long, or
    only fastres does."""
    factors = {EAGER: 1.0, FUSED: 1.0}

    def timed(self, rounds, **options):
        for name, entry in self.entries.items():
            entry.samples = [factors[name] * (1 + 0.001 * i) for i in range(rounds)]
        self.check()

    monkeypatch.setattr(compare.Comparison, "measure", timed)
    old, out = tmp_path / "old.json", ["--out", str(tmp_path)]
    arguments = ["bench", "op", "--model", "bn_act/layer4", "--batch", "2", "--image-size", "32",
                 "--implementations", FUSED, "--rounds", "6", "--threads", "1"]  # fmt: skip
    assert cli.main([*arguments, "--out", str(old)]) == 0
    factors.update({EAGER: 2.0, FUSED: 2.0})
    assert cli.main(["bench", "--compare", str(old), *out]) == 0
    factors[FUSED] = 2.4
    assert cli.main(["bench", "--compare", str(old), *out]) == 1
    told = capsys.readouterr().out
    assert "no regression of fastres is certain" in told
    assert "REGRESSION: op bn_act/layer4 fp32, batch 2, 32px: fastres: SLOWER" in told
    (new,) = set(tmp_path.glob("*.json")) - {old}
    (case,) = results.read(new)["cases"].values()
    assert case["implementations"][FUSED]["seconds"]["median"] == pytest.approx(2.406)
    assert cli.main([*arguments, "--out", str(old), "--compare", str(old)]) == 2
    assert "out must not be" in capsys.readouterr().err
    assert Summary.of(case["implementations"][FUSED]["seconds"]["rounds"]).samples == 6
