"""`fastres profile`: every microsecond of a step has one owner, and every operator its floor."""

from __future__ import annotations

import argparse
import gzip
import json
import os
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import DeviceType

from fastres import cli
from fastres.bench import EAGER, FUSED, cases, peers, profile, profile_command, results
from fastres.bench import traffic_model_machines as machines
from fastres.bench.profile import BETWEEN, ELSEWHERE
from fastres.bench.profile_operators import operators_of
from fastres.bench.traffic_model import Machine
from fastres.training.errors import UsageError

MACHINE = Machine("m", 1e9, 1e10, "told")
CALM = ("--model", "bottleneck14", "--batch", "2", "--image-size", "32", "--device", "cpu")


@pytest.fixture(scope="module", autouse=True)
def quiet():
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ["KINETO_LOG_LEVEL"] = "99"
    yield
    if before is None:
        del os.environ["KINETO_LOG_LEVEL"]


def step_of(name, **options):
    return peers.get(name).make(cases.network("bottleneck14", 2, 32, **options))


@pytest.fixture(scope="module", params=[FUSED, EAGER])
def found(request):
    return request.param, profile.profile(step_of(request.param, optimizer=True), MACHINE, steps=2)


def test_operators_and_what_is_between_them_are_the_step(found):
    _, profiled = found
    for rows in (profiled.operators, profiled.parts):
        assert sum(row.seconds for row in rows) == pytest.approx(profiled.step_seconds, rel=1e-3)
    assert profiled.unprofiled_seconds > 0


def test_the_largest_gap_comes_first(found):
    _, profiled = found
    gaps = [row.seconds - row.floor_seconds for row in profiled.operators]
    assert gaps == sorted(gaps, reverse=True)


def test_each_operator_has_its_calls_and_its_floor(found):
    name, profiled = found
    rows = {row.operator: row for row in profiled.operators}
    convolutions = "fastres::conv_stats" if name == FUSED else "aten::convolution"
    assert bool(profiled.fused) == (name == FUSED)
    assert rows[convolutions].calls == 17
    for row in profiled.fused:
        assert row.seconds > 0
        assert row.bytes > 0
    for row in profiled.operators:
        least = max(row.bytes / MACHINE.bandwidth, row.flops / MACHINE.matrix_rate)
        assert row.floor_seconds >= 0.999 * least
    # SGD reads parameter, gradient and momentum, and writes the first and the last
    parameters = sum(p.numel() for p in step_of(name).module.parameters())
    assert rows["aten::_fused_sgd_"].bytes == pytest.approx(5 * 4 * parameters, rel=0.01)


def test_both_networks_multiply_alike():
    flops = []
    for name in (FUSED, EAGER):
        step = step_of(name)
        flops.append(
            sum(call.flops for call in operators_of(lambda step=step: step(0), step.module))
        )
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


def test_parts_of_the_network(found):
    _, profiled = found
    parts = {row.operator: row for row in profiled.parts}
    assert {"stem", "layer1", "layer2", "layer3", "layer4", "head", "optimizer"} <= set(parts)
    assert parts["layer4"].flops > parts["head"].flops > 0
    assert sum(row.bytes for row in parts.values()) == sum(row.bytes for row in profiled.operators)


def test_an_optimised_network_s_convolutions_have_flops():
    step = peers.get(peers.OPTIMIZED).make(cases.inference("bottleneck14", 2, 32))
    profiled = profile.profile(step, MACHINE, steps=1)
    with_products = [row for row in profiled.operators if row.flops]
    assert sum(row.seconds for row in with_products) > 0
    assert "aten::linear" not in {row.operator for row in profiled.operators}


def event(name, identity, parent=None, device=0.0, cpu=0.0, kind=DeviceType.CPU):
    return SimpleNamespace(
        name=name, id=identity, cpu_parent=parent, self_device_time_total=device,
        self_cpu_time_total=cpu, device_type=kind,
    )  # fmt: skip


def test_a_kernel_belongs_to_the_outermost_operator_around_it():
    fused = event("fastres::expand", 1, device=3.0)
    inner = event("aten::mm", 2, fused, device=4.0)
    alone = event("aten::mm", 3, device=5.0)
    strange = event("cudaLaunchKernel", 4, device=6.0)
    kernel = event("gemm_kernel", 5, device=100.0, kind=DeviceType.CUDA)
    names = {"fastres::expand", "aten::mm"}
    owned = list(profile._owners([fused, inner, alone, strange, kernel], names, True))
    assert [(identity, name) for identity, name, _ in owned] == [
        (1, "fastres::expand"), (1, "fastres::expand"), (3, "aten::mm"), (0, BETWEEN),
    ]  # fmt: skip
    assert [seconds for _, _, seconds in owned] == pytest.approx([3e-6, 4e-6, 5e-6, 6e-6])


def test_on_a_gpu_the_rest_of_the_step_is_between_the_kernels():
    calls = [
        profile.Call("fastres::expand", "layer1", 100, 0),
        profile.Call("aten::add", "layer2", 50, 0),
    ]
    times = [(1, "fastres::expand", 3.0), (2, "aten::add_", 1.0), (3, "fastres::expand", 5.0)]
    empty = profile.Profile(6.0, 6.0, MACHINE)
    done = profile._attribute(times, calls, 2, empty, True)
    assert {row.operator: row.seconds for row in done.operators} == {
        "fastres::expand": 4.0, "aten::add_": 0.5, BETWEEN: 1.5,
    }  # fmt: skip
    # a name that ran otherwise than it was listed is in no part
    assert {row.operator: row.seconds for row in done.parts} == {
        "layer1": 4.0, "layer2": 0.0, ELSEWHERE: 0.5, BETWEEN: 1.5,
    }  # fmt: skip


def test_the_command_writes_a_profile_and_a_trace(tmp_path, capsys):
    out = tmp_path / "results.json"
    results.write(out, {"cases": {"kept": {}}})
    arguments = ["profile", *CALM, "--machine", "A100", "--steps", "1", "--out", str(out)]
    assert cli.main(arguments) == 0
    text = capsys.readouterr().out
    assert "fastres::chain_backward" in text
    assert "by part of the network" in text
    content = json.loads(out.read_text())
    assert content["cases"] == {"kept": {}}
    ((name, record),) = content["profiles"].items()
    assert name == "bottleneck14 fp32, batch 2, 32x32, fastres, cpu"
    assert (record["model"], record["batch"], record["image_size"]) == ("bottleneck14", 2, 32)
    assert (record["dtype"], record["device"]) == ("float32", "cpu")
    assert record["machine"]["name"] == "A100"
    assert record["machine"]["bytes_per_second"] == machines.known("A100", "fp32").bandwidth
    columns = {"operator", "calls", "seconds", "bytes", "flops", "floor_seconds"}
    assert all(set(row) == columns for row in record["operators"])
    trace = json.loads(gzip.decompress((tmp_path / record["trace"]).read_bytes()))
    names = {one.get("name") for one in trace["traceEvents"]}
    assert {"fastres::chain_backward", "fastres: step"} <= names


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--model", "resnet51"], "model"),
        (["--batch", "0"], "batch"),
        (["--steps", "0"], "steps"),
        (["--threads", "0"], "threads"),
        (["--device", "tpu9"], "device"),
        (["--device", "meta"], "device"),
        (["--bandwidth", "1"], "matrix_rate"),
        (["--machine", "H100", "--bandwidth", "1", "--matrix-rate", "1"], "machine"),
        (["--implementation", "fastres.optimize"], "inference"),
    ],
)
def test_bad_options_are_named(options, named, tmp_path, capsys):
    assert cli.main(["profile", *CALM, *options, "--out", str(tmp_path / "o.json")]) == 2
    assert named in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_gpu_is_named():
    parser = argparse.ArgumentParser()
    profile_command.add_arguments(parser)
    with pytest.raises(UsageError, match="no CUDA device"):
        profile_command.main(parser.parse_args(["--device", "cuda"]))


def test_a_file_that_is_no_results_file_is_left_alone(tmp_path, capsys):
    out = tmp_path / "notes.json"
    out.write_text("[1, 2]\n")
    arguments = ["profile", *CALM, "--machine", "A100", "--steps", "1", "--out", str(out)]
    assert cli.main(arguments) == 2
    assert "not a results file" in capsys.readouterr().err
    assert out.read_text() == "[1, 2]\n"


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        profile.profile(step_of(FUSED), MACHINE, steps=0)
