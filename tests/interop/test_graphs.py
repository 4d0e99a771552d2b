"""Fused networks as graphs: compiled, exported, traced, captured, counted."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from collections import Counter

import pytest
import torch
from interop.networks import (
    CLOSE,
    FORWARD,
    LIBRARIES,
    assert_close,
    assert_same_step,
    double,
    fused_path,
    images,
    small,
    state,
    twins,
)
from interop.works_with import works_with
from torch import nn

import fastres
from fastres import backends, functional
from fastres.functional import BatchNormState
from fastres.layers import Block


def operators(graph: torch.fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_function"}


# torch.compile


class Recorded:
    """The "aot_eager" backend, which remembers what it was given."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list):
        self.graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)


@works_with("`torch.compile(fullgraph=True)`: training steps, one graph for batches of any size")
@pytest.mark.parametrize("library", LIBRARIES)
def test_compiled(library):
    torch._dynamo.reset()
    plain, fused = double(library)
    recorded = Recorded()
    call = torch.compile(fused, backend=recorded, fullgraph=True)
    eager = fastres.fuse(copy.deepcopy(plain))
    for index, n in enumerate((4, 6, 5)):
        x = images(n, dtype=torch.float64, seed=index)
        torch._dynamo.mark_dynamic(x, 0, min=2, max=8)
        results = []
        for model, run in ((plain, plain), (eager, eager), (fused, call)):
            model.zero_grad()
            with fused_path() if model is not plain else warnings.catch_warnings():
                out = run(x)
                (out * torch.linspace(-1, 1, 10, dtype=out.dtype)).sum().backward()
            found = {name: p.grad.clone() for name, p in model.named_parameters()}
            results.append({"out": out.detach(), **found, **state(model)})
        assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)
        assert_close(results[2], results[1])
        with torch.no_grad():  # an SGD step: the graph reads the parameters as they are
            for model in (plain, eager, fused):
                for p in model.parameters():
                    p.sub_(p.grad, alpha=1e-3)
    assert len(recorded.graphs) == 1
    assert not any("batch_norm" in target for target in operators(recorded.graphs[0].graph))


@works_with("`torch.compile` with Inductor")
def test_compiled_by_inductor():
    torch._dynamo.reset()
    torch.manual_seed(0)
    plain, fused = twins(lambda: nn.Sequential(small().layer1, nn.Flatten(), nn.Linear(16384, 3)))
    call = torch.compile(fused, fullgraph=True)
    x = torch.randn(2, 64, 8, 8)
    with fused_path():
        call(x).square().mean().backward()
    plain(x).square().mean().backward()
    for a, b in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-3, atol=1e-5)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()), rtol=1e-4, atol=1e-5)


# torch.export, ONNX, torch.jit


@works_with("`torch.export`, in eval and in train mode: a graph of PyTorch's own operators")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("library", LIBRARIES)
def test_exported(library, training, strict):
    plain, fused = (model.train(training) for model in double(library))
    x = images(dtype=torch.float64)
    size = {0: torch.export.Dim("n", min=2, max=64)}
    programs = [
        torch.export.export(copy.deepcopy(model), (x,), dynamic_shapes=(size,), strict=strict)
        for model in (plain, fused)
    ]
    # a fused network never adds a shortcut in place
    adds = {"aten.add.Tensor", "aten.add_.Tensor"}
    found, wanted = (operators(program.graph) for program in reversed(programs))
    assert found - adds == wanted - adds
    # the network itself stays fused, and so it runs
    module, same = programs[1].module(), copy.deepcopy(fused)
    for n in (4, 7):
        x = images(n, dtype=torch.float64)
        with fused_path(FORWARD):
            expected = same(x)
        torch.testing.assert_close(module(x), expected, **CLOSE)
    # in eval mode a graph has no counters
    held, buffers = dict(module.named_buffers()), dict(same.named_buffers())
    assert held.keys() >= {name for name in buffers if training or "running" in name}
    assert_close(held, {name: buffers[name] for name in held})
    assert_same_step(plain.train(), fused.train(), images(dtype=torch.float64))


@pytest.fixture
def onnx():
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


PLAIN = {"Conv", "Relu", "Add", "MaxPool", "GlobalAveragePool", "ReduceMean", "Gemm"}
# names of sizes, of constants and of a BN that is not folded into its convolution
PLAIN |= {"BatchNormalization", "Flatten", "Reshape", "Shape", "Concat", "Constant", "Identity"}


@works_with("ONNX, by both of torch's exporters, run by onnxruntime")
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("library", LIBRARIES)
def test_onnx(onnx, library, dynamo, tmp_path):
    import onnxruntime

    if dynamo:
        pytest.importorskip("onnxscript")
    plain, fused = twins(lambda: small(library).eval())
    counted = []
    for name, model in (("plain", plain), ("fused", fused)):
        file = tmp_path / f"{name}.onnx"
        axes = {"dynamic_shapes": ({0: "n"},)} if dynamo else {"dynamic_axes": {"x": {0: "n"}}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's, about itself
            torch.onnx.export(
                model, (images(),), file, dynamo=dynamo, input_names=["x"], verbose=False, **axes
            )
        nodes = onnx.load(file).graph.node
        assert {node.domain for node in nodes} <= {"", "ai.onnx"}
        counted.append(Counter(node.op_type for node in nodes))
    assert counted[1] == counted[0]
    assert set(counted[1]) <= PLAIN, counted[1]
    assert counted[1]["Conv"] == 20
    session = onnxruntime.InferenceSession(
        tmp_path / "fused.onnx", providers=["CPUExecutionProvider"]
    )
    for n in (4, 3):
        x = images(n, seed=n)
        with fused_path(FORWARD), torch.no_grad():
            expected = fused(x)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)


@works_with("`torch.jit.trace`")
def test_jit_traced():
    plain, fused = (model.eval() for model in double())
    x = images(dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and still in use
        traced = torch.jit.trace(fused, x)
        file = io.BytesIO()
        torch.jit.save(traced, file)
        file.seek(0)
        loaded = torch.jit.load(file)
    assert "fastres::" not in str(traced.inlined_graph)
    x = images(3, dtype=torch.float64, seed=2)
    with fused_path(FORWARD):
        expected = fused(x)
    torch.testing.assert_close(loaded(x), expected, **CLOSE)
    torch.testing.assert_close(expected, plain(x), **CLOSE)


# torch.fx


@works_with("`torch.fx.symbolic_trace`: every block a node that goes on being fused")
@pytest.mark.parametrize("library", LIBRARIES)
def test_symbolically_traced(library):
    plain, fused = double(library)
    before = state(fused)
    traced = torch.fx.symbolic_trace(fused)
    assert_close(state(fused), before, rtol=0, atol=0)
    called = [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]
    assert called[:5] == ["conv1", "bn1", "relu" if library == "torchvision" else "act1",
                          "maxpool", "layer1.0"]  # fmt: skip
    assert isinstance(traced.get_submodule("layer4.0"), Block)
    assert_same_step(plain, traced, images(dtype=torch.float64))
    # the same graph in the other mode, and what it updates are the network's own statistics
    x = images(dtype=torch.float64, seed=3)
    with fused_path(FORWARD):
        torch.testing.assert_close(traced.eval()(x), plain.eval()(x), **CLOSE)
    assert traced.get_submodule("layer1.0").bn1 is fused.layer1[0].bn1
    assert int(fused.layer1[0].bn1.num_batches_tracked) == 1


def test_a_block_traced_by_itself():
    """The root of a trace cannot be a node of it."""
    block = small().layer1[0].eval()
    x = torch.randn(2, 64, 8, 8)
    expected = block(x)
    traced = torch.fx.symbolic_trace(fastres.fuse(block))
    torch.testing.assert_close(traced(x), expected)


# CUDA graphs


@works_with("`torch.cuda.make_graphed_callables`")
@pytest.mark.gpu
@pytest.mark.parametrize("library", LIBRARIES)
def test_graphed(library):
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        eager = fastres.fuse(small(library)).cuda()
        start = state(eager)
        captured = copy.deepcopy(eager)
        call = torch.cuda.make_graphed_callables(captured, (images().cuda(),))
        captured.load_state_dict(start)  # capturing has run it
        for seed in range(3):
            x = images(seed=seed).cuda()
            results = []
            for model, run in ((eager, eager), (captured, call)):
                model.zero_grad()
                with fused_path() if model is eager else warnings.catch_warnings():
                    out = run(x)
                    out.square().mean().backward()
                found = {name: p.grad.clone() for name, p in model.named_parameters()}
                results.append({"out": out.detach().clone(), **found, **state(model)})
            assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


# counters and profilers


def counted(call) -> dict[str, int]:
    """Flops by operator, of a forward and of the backward pass after it."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call().sum().backward()
    return {str(name): flops for name, flops in counter.get_flop_counts()["Global"].items()}


@works_with("`torch.utils.flop_counter.FlopCounterMode`: the unfused network's table")
@pytest.mark.parametrize("library", LIBRARIES)
def test_flops_of_a_network(library):
    """It hooks every module, so that modules are called as they stand, and it can tell them."""
    plain, fused = double(library)
    x = images(dtype=torch.float64)
    assert counted(lambda: fused(x)) == counted(lambda: plain(x))
    with fused_path():
        fused(x).sum().backward()


@works_with("`FlopCounterMode` around fastres's functions: convolutions, and the products made")
def test_flops_of_operators():
    torch.manual_seed(0)
    block = small().layer2[1].double()
    x = torch.randn(2, 512, 6, 6, dtype=torch.float64, requires_grad=True)
    wanted = counted(lambda: block(x))
    described = fastres.fuse(copy.deepcopy(block)).describe()
    with fused_path(("chain_backward",)):
        found = counted(lambda: fastres.residual_blocks(x, (described,)))
    assert set(found) == {"fastres.conv_stats", "fastres.chain_backward"}
    assert found["fastres.conv_stats"] == wanted["aten.convolution"]
    assert found["fastres.chain_backward"] == wanted["aten.convolution_backward"]

    with fused_path(("expand_backward_weight",)):
        found = counted(lambda: fastres.residual_blocks(x, (described,), memory="low"))
    m, (n, k) = 2 * 6 * 6, described.layers[-1].weight.shape[:2]
    last = 2 * m * n * k
    assert found["fastres.conv_stats"] + last == wanted["aten.convolution"]
    assert found["fastres.moments"] == 2 * m * k * k
    assert found["fastres.expand"] == found["fastres.expand_backward_weight"] == last
    assert found["fastres.expand_backward_data"] == last + 2 * m * k * k
    assert found["fastres.moment_statistics"] == 2 * n * k * k
    assert found["fastres.moment_batch_gradients"] == 4 * n * k * k


def test_flops_of_single_layers():
    w = torch.randn(6, 4, 3, 3, requires_grad=True)
    x = torch.randn(2, 4, 7, 7, requires_grad=True)
    bn = BatchNormState.of(nn.BatchNorm2d(6))
    calls = {
        "act": lambda: fastres.conv_bn_act(x, w, bn, stride=2),
        "pool": lambda: fastres.conv_bn_max_pool(x, w, bn),
        "conv": lambda: functional.conv2d(x, w),
    }
    plain = {
        "act": lambda: nn.functional.conv2d(x, w, stride=2),
        "pool": lambda: nn.functional.conv2d(x, w),
        "conv": lambda: nn.functional.conv2d(x, w),
    }
    for name, call in calls.items():
        assert sum(counted(call).values()) == sum(counted(plain[name]).values()), name
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.ops.fastres.conv_bias_act(x, w, None, None, [2, 2], [0, 0], [1, 1], 1, True)
    forward = 2 * 2 * 3 * 3 * w.numel()
    assert counter.get_total_flops() == forward


def test_the_flop_counter_is_not_imported_for_nothing():
    """Importing it takes longer than importing fastres. Imported before or after, it knows us."""
    code = """
import sys, torch
{before}
import fastres
assert {before!r} or "torch.utils.flop_counter" not in sys.modules
assert {before!r} or "triton" not in sys.modules
from torch.utils.flop_counter import flop_registry
assert torch.ops.fastres.conv_stats in flop_registry
"""
    for before in ("", "import torch.utils.flop_counter"):
        subprocess.run([sys.executable, "-c", code.format(before=before)], check=True)


@works_with("`torch.profiler`: operators by name, with shapes")
@pytest.mark.parametrize("library", LIBRARIES)
def test_profiled(library):
    _, fused = double(library)
    x = images(dtype=torch.float64)
    backends.reset_counts()
    with torch.profiler.profile(record_shapes=True) as profile:
        fused(x).sum().backward()
    launched = {
        f"fastres::{key.partition(':')[0]}": times for key, times in backends.counts().items()
    }
    events = [event for event in profile.events() if event.name.startswith("fastres::")]
    assert Counter(event.name for event in events) == launched
    assert {"fastres::conv_stats", "fastres::chain_backward"} <= set(launched)
    stem = next(event for event in events if event.name == "fastres::conv_stats")
    assert stem.input_shapes[:2] == [[4, 3, 64, 64], [64, 3, 7, 7]]


# no gradients


@works_with("`torch.inference_mode` and `torch.no_grad`, in eval and in train mode")
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize("library", LIBRARIES)
def test_without_gradients(library, mode, training):
    plain, fused = (model.train(training) for model in double(library))
    x = images(dtype=torch.float64)
    expected = plain(x)
    with mode(), fused_path(FORWARD):
        found = fused(x)
    assert found.is_inference() == (mode is torch.inference_mode)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), **CLOSE)
    assert_close(dict(fused.named_buffers()), dict(plain.named_buffers()))
    # a training step afterwards
    assert_same_step(plain.train(), fused.train(), x)
