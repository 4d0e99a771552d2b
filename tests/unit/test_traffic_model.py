"""The byte-and-flop model: its counting, and the plan beside a step that really ran."""

from __future__ import annotations

import json
from collections import Counter

import pytest
import torch
from torch import nn

import fastres
from fastres import backends, cli, functional, models
from fastres.bench import EAGER, cases, memory, peers
from fastres.bench import traffic_model_machines as machines
from fastres.bench.traffic_model import BACKWARD, FORWARD, OPTIMIZER, Machine, Operation, Plan
from fastres.bench.traffic_model_aten import costs, nbytes
from fastres.bench.traffic_model_plans import NAMES, VARIANTS, record, unit
from fastres.bench.traffic_model_recorder import Recorder, block_of
from fastres.bench.workload import Step, Workload, make_batches
from fastres.layers import Bottleneck, Stage

BY_NAME = {variant.name: variant for variant in VARIANTS}
EAGER_VARIANT, POINTWISE, DEFAULT = VARIANTS[0], VARIANTS[1], BY_NAME["back-to-back"]
aten = torch.ops.aten


def only_cost(func, *args, **kwargs):
    found = list(costs(func, args, kwargs, func(*args, **kwargs)))
    assert len(found) == 1
    return found[0]


def test_bytes_of_elements_that_lie_apart():
    x = torch.zeros(3, 4)
    assert nbytes(x) == 48
    assert nbytes(x[:, :2]) == 24
    assert nbytes(torch.zeros(1, 4).expand(3, 4)) == 16
    assert nbytes(torch.zeros(0, 4)) == 0


def test_an_operator_reads_what_it_is_given_and_writes_what_it_makes():
    x, y = torch.zeros(4, 8), torch.zeros(4, 8)
    assert only_cost(aten.add.Tensor, x, y)[1:] == (256, 128, 0)
    assert only_cost(aten.add_.Tensor, x, y)[1:] == (256, 128, 0)
    assert only_cost(aten.copy_.default, x, y)[1:] == (128, 128, 0)
    assert only_cost(aten.zero_.default, x)[1:] == (0, 128, 0)
    assert only_cost(aten.ones_like.default, x)[1:] == (0, 128, 0)
    assert only_cost(aten.mm.default, x, y.t())[1:] == (256, 64, 2 * 4 * 8 * 4)


def test_views_and_empty_tensors_move_nothing():
    x = torch.zeros(4, 8)
    for func, args in (
        (aten.t.default, (x,)),
        (aten.view.default, (x, [32])),
        (aten.detach.default, (x,)),
        (aten.empty_like.default, (x,)),
    ):
        assert list(costs(func, args, {}, func(*args))) == []


def test_batch_norm_goes_through_its_input_twice():
    x, vector = torch.randn(2, 3, 4, 4), torch.ones(3)
    one = x.numel() * 4
    forward = (x, vector, vector, vector.clone(), vector.clone(), True, 0.1, 1e-5)
    cost = only_cost(aten.native_batch_norm.default, *forward)
    assert (cost.read - 4 * 12, cost.written - 2 * 12) == (2 * one, one)
    frozen = (*forward[:5], False, 0.1, 1e-5)
    assert only_cost(aten.native_batch_norm.default, *frozen).read - 4 * 12 == one
    backward = (x, x.clone(), vector, vector, vector, vector, vector, True, 1e-5, [True] * 3)
    cost = only_cost(aten.native_batch_norm_backward.default, *backward)
    assert (cost.read - 5 * 12, cost.written - 2 * 12) == (4 * one, one)


def test_a_convolution_s_gradients_each_read_dout():
    x, weight, dout = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 1, 1), torch.randn(2, 5, 4, 4)
    common = ([2, 2], [0, 0], [1, 1], False, [0, 0], 1)
    forward = only_cost(aten.convolution.default, x, weight, None, *common)
    # of the pixels, a 1x1 kernel with a stride of two meets a quarter
    assert forward[1:] == (x.numel() + weight.numel() * 4, dout.numel() * 4, 2 * 160 * 3)
    arguments = (dout, x, weight, None, *common, [True, True, False])
    out = aten.convolution_backward.default(*arguments)
    dx, dw = costs(aten.convolution_backward.default, arguments, {}, out)
    assert dx[1:] == ((dout.numel() + weight.numel()) * 4, x.numel() * 4, 2 * 160 * 3)
    assert dw[1:] == (dout.numel() * 4 + x.numel(), weight.numel() * 4, 2 * 160 * 3)
    arguments = (*arguments[:-1], [False, True, False])
    out = aten.convolution_backward.default(*arguments)
    assert [c.name for c in costs(aten.convolution_backward.default, arguments, {}, out)] == [
        "convolution_backward dw"
    ]


def test_the_floor_is_the_longer_of_bytes_and_products():
    machine = Machine("m", 100.0, 1000.0, "")
    a = Operation("a", "aten", FORWARD, "b", 60, 40, 500)
    b = Operation("b", "aten", BACKWARD, "b", 50, 0, 4000)
    assert (machine.seconds(a), machine.seconds(b)) == (1.0, 4.0)
    plan = Plan("p", "", (a, b))
    total = plan.total(machine)
    assert (total.calls, total.bytes, total.flops, total.seconds) == (2, 150, 4500, 5.0)
    assert plan.block_bytes("b") == {FORWARD: 100, BACKWARD: 50, OPTIMIZER: 0}
    grouped = plan.grouped(machine, lambda operation: operation.phase)
    assert {name: found.bytes for name, found in grouped.items()} == {FORWARD: 100, BACKWARD: 50}


def test_machines():
    h200 = machines.known("H200", "bf16")
    assert (h200.bandwidth, h200.matrix_rate) == (4.8e12, 989e12)
    assert machines.known("H200", "fp32").matrix_rate < h200.matrix_rate / 1.9
    assert machines.given(2, 100).bandwidth == 2e12


@pytest.mark.parametrize(
    ("name", "before", "block"),
    [
        ("conv1.weight", [], "stem"),
        ("layer1.0.conv1.weight", ["stem"], "layer1.0"),
        ("layer4.2.downsample.1.bias", ["stem"], "layer4.2"),
        ("fc.bias", ["stem", "layer1.0"], "head"),
    ],
)
def test_block_of(name, before, block):
    assert block_of(name, before) == block


def test_every_operator_belongs_to_a_block():
    found = record(cases.network("bottleneck14", 2, 64, "bf16"), EAGER_VARIANT)
    assert found.blocks == ("stem", *(f"layer{i}.0" for i in range(1, 5)), "head")
    blocks = {operation.block for operation in found.plan.operations}
    assert blocks == {*found.blocks, OPTIMIZER}
    convolutions = Counter(
        o.block for o in found.plan.operations if o.name == "convolution_backward dw"
    )
    assert convolutions == {"stem": 1, **{f"layer{i}.0": 4 for i in range(1, 5)}}


@pytest.fixture(scope="module")
def resnet50():
    """(workload, unit): large enough for the weights not to matter beside the activations."""
    workload = cases.network("resnet50", 64, 224, "bf16")
    return workload, unit(workload)


def units(found, measure) -> dict[str, float]:
    moved = found.plan.block_bytes(measure.block)
    return {phase: moved[phase] / measure.nbytes for phase in (FORWARD, BACKWARD)}


def test_eager_is_what_one_counts_by_hand(resnet50):
    # narrow activations of a bottleneck: a convolution reads 4, 1, 1 and writes 1, 1, 4; a batch
    # norm reads its input twice and writes it once; ReLU 2 and add 12; backward alike
    workload, measure = resnet50
    assert measure.block == "layer1.1"
    found = record(workload, EAGER_VARIANT)
    assert units(found, measure) == pytest.approx({FORWARD: 54, BACKWARD: 84}, abs=0.1)
    assert found.saved[measure.block] / measure.nbytes == pytest.approx(12, abs=0.02)
    assert found.plan.total(machines.known("H200", "bf16")).flops == pytest.approx(
        # three times the paper's 4.1e9 multiply-adds an image but for the images' own gradient
        2 * 64 * (3 * fastres.count(fastres.resnet50(), 224).multiply_adds - 118013952),
        rel=1e-6,
    )


def test_pointwise_fusion_is_what_one_counts_by_hand(resnet50):
    workload, measure = resnet50
    found = record(workload, POINTWISE)
    assert units(found, measure) == pytest.approx({FORWARD: 34, BACKWARD: 78}, abs=0.2)


@pytest.mark.parametrize(
    ("name", "most"),
    [("prologue/epilogue", 80), ("moment-triton", 50), ("back-to-back-triton", 46)],
)
def test_units_of_a_bottleneck(name, most):
    """Partial results of split products included."""
    workload = cases.network("resnet50", 256, 224, "bf16")
    measure = unit(workload)
    found = record(workload, BY_NAME[name], "NVIDIA H200", "sm_90")
    assert sum(units(found, measure).values()) <= most
    kept = found.saved[measure.block] / measure.nbytes
    assert kept == pytest.approx(10 if name.startswith("prologue") else 6, abs=0.01)


def test_what_is_left_of_small_launches():
    """Under 1 MB an operator costs its launch: few of those are left, and PyTorch's are known."""
    workload = cases.network("resnet50", 256, 224, "bf16")
    plan = record(workload, DEFAULT, "NVIDIA H200", "sm_90").plan
    total = plan.total(machines.known("H200", "bf16"))
    assert total.calls <= 811
    assert total.small <= 344
    block = [o for o in plan.operations if o.block == "layer2.1"]
    of_moments = Counter(o.name for o in block if o.name.startswith("moment_"))
    names = ("statistics", "affine", "gradients", "weight", "mixing")
    assert of_moments == {f"moment_{name}": 1 for name in names}
    aten = Counter(o.name for o in block if o.provider == "aten" and o.bytes < 10**6)
    # casts and copies of weights apart: the invstd of two BNs, a pivot, the means of two gradients
    del aten["_to_copy"], aten["copy_"]
    assert aten == {"add": 2, "rsqrt": 2, "relu": 1, "_foreach_div": 2}


class Tiny(nn.Module):
    """A bottleneck with a projection, one without, and a classifier."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, stride=2, bias=False), nn.BatchNorm2d(32))
        self.layer1 = Stage(
            Bottleneck(16, 8, 2, shortcut, fused=fused), Bottleneck(32, 8, fused=fused)
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x):
        return self.fc(self.layer1(self.conv1(x)).mean((2, 3)))


def real_step(name: str, fused: bool) -> Step:
    if name == "tiny":
        workload = Workload(name, Tiny, ((3, 3, 18, 18),), 10)
    elif name == "resnet8":
        workload = Workload(
            name, lambda fused: models.CifarResNet(8, fused=fused), ((2, 3, 32, 32),), 10
        )
    else:
        workload = cases.network(name, 2, 64)
    module = workload.build(fused).to(memory_format=torch.channels_last)
    return Step(workload, module, make_batches(workload, torch.channels_last, count=1))


@pytest.fixture
def blocks_as_on_a_gpu(monkeypatch):
    """The moment form from as many rows as there."""
    rows = backends.rows_per_channel(torch.device("cuda"), torch.float32)
    monkeypatch.setattr(functional.blocks, "rows_per_channel", lambda *_: rows)


def recorded(step: Step) -> Recorder:
    """A step that computes, its Triton kernels in the interpreter."""
    recorder = Recorder(step.module, make=True)
    with recorder:
        out = step.forward_pass(step.batches[0])
        with recorder.phase(BACKWARD):
            out.backward()
    return recorder


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs Triton's interpreter")
@pytest.mark.parametrize("name", ["resnet8", "tiny"])
@pytest.mark.parametrize("variant", [EAGER_VARIANT, DEFAULT], ids=["eager", "fastres"])
def test_the_plan_is_the_step_that_runs(name, variant, blocks_as_on_a_gpu):
    step = real_step(name, variant.fused)
    ran = recorded(step)
    planned = record(step.workload, variant).plan.operations
    # whether a 1x1 weight's gradient must be copied into its layout, devices disagree about
    assert [o for o in ran.operations if o.name != "copy_"] == [
        o for o in planned if o.name != "copy_" and o.phase != OPTIMIZER
    ]
    assert all(p.grad.abs().sum() > 0 for p in step.module.parameters())


def test_the_plan_moves_the_tensors_of_a_real_step():
    """By tensors that hooks of a real step see, apart from the recorder."""
    step = real_step("bottleneck14", False)
    seen: Counter[str] = Counter()

    def count(kind, times_in):
        def hook(module, inputs, out):
            seen[kind] += times_in * inputs[0].nbytes + out.nbytes
            seen[kind] += sum(p.nbytes for p in module.parameters(recurse=False))

        return hook

    for module in step.module.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(count("native_batch_norm", 2))
        elif isinstance(module, nn.Conv2d) and (module.kernel_size, module.stride) != (
            (1, 1),
            (2, 2),
        ):
            module.register_forward_hook(count("convolution", 1))
    step.forward_pass(step.batches[0])
    planned = record(step.workload, EAGER_VARIANT).plan.operations
    moved: Counter[str] = Counter()
    for operation in planned:
        if operation.phase == FORWARD:
            moved[operation.name] += operation.bytes
    norms = [m for m in step.module.modules() if isinstance(m, nn.BatchNorm2d)]
    # running statistics are read, the batch's own are written
    assert moved["native_batch_norm"] == seen["native_batch_norm"] + sum(
        4 * 4 * norm.num_features for norm in norms
    )
    strided = [m for m in step.module.modules() if isinstance(m, nn.Conv2d)]
    strided = [m for m in strided if m.kernel_size == (1, 1) and m.stride == (2, 2)]
    assert len(strided) == 3
    without = sum(o.bytes for o in planned if o.name == "convolution" and o.phase == FORWARD) - sum(
        _strided_bytes(m, size) for m, size in zip(strided, (16, 8, 4), strict=True)
    )
    assert without == seen["convolution"]


def _strided_bytes(conv: nn.Conv2d, size: int) -> int:
    pixels = 2 * (size // 2) ** 2
    return 4 * (pixels * (conv.in_channels + conv.out_channels) + conv.weight.numel())


@pytest.mark.parametrize("name", ["resnet8", "tiny"])
@pytest.mark.parametrize("fused", [False, True])
def test_what_a_plan_keeps_is_what_a_step_keeps(name, fused, blocks_as_on_a_gpu):
    step = real_step(name, fused)
    planned = record(step.workload, DEFAULT if fused else EAGER_VARIANT)
    assert sum(planned.saved.values()) == memory.saved_bytes(step)


def test_command(tmp_path, capsys):
    path = tmp_path / "traffic.json"
    code = cli.main(
        ["traffic", "--model", "resnet20", "--batch", "4", "--dtype", "fp32", "--blocks",
         "--plan", "eager", "pointwise", "--bandwidth", "2", "--matrix-rate", "100",
         "--json", str(path)]
    )  # fmt: skip
    assert code == 0
    out = capsys.readouterr().out
    assert "resnet20 fp32, batch 4, 32x32: a training step on the given device" in out
    assert "layer1.0, in units of one narrow activation" in out
    assert "backward: native_batch_norm_backward" in out
    assert "MB of every block" in out
    written = json.loads(path.read_text())
    assert [plan["name"] for plan in written["plans"]] == ["eager", "pointwise"]
    assert written["machine"]["bandwidth"] == 2e12
    for plan in written["plans"]:
        operations = plan["operations"]
        assert plan["total"]["read"] == sum(o["read"] for o in operations)
        assert plan["total"]["seconds"] == pytest.approx(sum(o["seconds"] for o in operations))
    assert written["plans"][0]["units"] == pytest.approx({FORWARD: 17, BACKWARD: 27}, abs=0.2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "resnet21"], "model must be one of resnet18"),
        (["--batch", "0"], "batch must be at least 1, got 0"),
        (["--image-size", "8"], "image_size must be at least 32, got 8"),
        (["--gpu", "H200", "--measure"], "give one of gpu, bandwidth with matrix_rate"),
        (["--bandwidth", "3"], "bandwidth and matrix_rate must both be above 0"),
    ],
)
def test_bad_input_is_one_line(capsys, arguments, message):
    assert cli.main(["traffic", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_names_are_distinct():
    assert len(set(NAMES)) == len(VARIANTS)
    assert peers.get(EAGER).name == EAGER
