"""The launch operators as torch.compile, torch.export and torch.fx see them."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers.residual import KINDS, BlockEnd, Case
from parity.oracle import make_join
from torch import nn
from torch.library import opcheck

import fastres
from fastres.backends.ops import SCHEMAS
from fastres.functional import max_pool2d, pad_shortcut
from fastres.layers.around import obstacle_around

launch = torch.ops.fastres
GEOMETRY = ([2, 2], [1, 1], [1, 1], 1)
WINDOW = ([3, 3], [2, 2], [1, 1])


def arguments(dtype: torch.dtype) -> dict[str, list[tuple]]:
    """Representative arguments of every launch operator."""
    found: dict[str, list[tuple]] = {name: [] for name in SCHEMAS}
    x = torch.randn(2, 4, 7, 6).to(dtype)
    narrow, wide = torch.randn(6, 4, 3, 3).to(dtype), torch.randn(6, 4, 3, 3)
    prologue = (torch.randn(4), torch.rand(4) + 0.5, torch.randn(4), None)
    y = torch.randn(2, 6, 4, 3).to(dtype)
    for weight in (narrow, wide):
        found["conv_stats"] += [
            (x, weight, *GEOMETRY, *[None] * 4, True),
            (x, weight, *GEOMETRY, *prologue, False),
        ]
        found["conv_bias_act"] += [
            (x, weight, None, None, *GEOMETRY, True),
            (x, weight, torch.randn(6), y, *GEOMETRY, False),
        ]
        for wanted in ((True, True), (True, False), (False, True), (False, False)):
            found["conv_backward"].append((y, x, weight, *GEOMETRY, *wanted))
    found["bn_stats"] += [(y,), (y[:0],), (y.contiguous(memory_format=torch.channels_last),)]
    found["max_pool"].append((x, *WINDOW))
    out, index = launch.max_pool(x, *WINDOW)
    found["max_pool_backward"].append((out, index, list(x.shape), *WINDOW))
    for channels, stride in ((4, 1), (4, 2), (6, 1), (7, 3)):
        found["pad_shortcut"].append((x, channels, stride))
        dout = launch.pad_shortcut(x, channels, stride)
        found["pad_shortcut_backward"].append((dout, list(x.shape), stride))
    for kind in KINDS:
        for relu, frozen in ((True, False), (False, True)):
            join = make_join(kind, dtype, 6, size=(4, 3), relu=relu)
            mean, var = launch.bn_stats(join.y)
            branch = (mean, (var + 1e-5).rsqrt(), join.weight, join.bias)
            second = branch if kind == "bn" else (None,) * 4
            apply = (join.y, *branch, join.shortcut, *second, join.stride, relu)
            found["bn_apply"].append(apply)
            out = launch.bn_apply(*apply) if relu and kind != "none" else None
            beside = join.shortcut if kind == "bn" else None
            found["bn_backward_reduce"].append(
                (join.dout, out, join.y, *branch, beside, *second[:2], relu)
            )
            means = (None, None) if frozen else (mean, mean)
            for size in ([], [] if join.shortcut is None else list(join.shortcut.shape)):
                backward = (
                    join.dout, out, join.y, *branch, *means, beside, *second[:3],
                    mean if kind == "bn" and not frozen else None, size, join.stride, relu,
                )  # fmt: skip
                found["bn_backward"].append(backward)
                found["conv_bn_backward"] += [
                    (*backward, x, weight, *GEOMETRY, True, wanted)
                    for weight, wanted in ((narrow, True), (wide, False))
                ]
    for name, samples in block_arguments(dtype).items():
        found[name] += samples
    return found


def block_arguments(dtype: torch.dtype) -> dict[str, list[tuple]]:
    """The same for the operators of whole blocks."""

    def activation(channels: int, *size: int) -> torch.Tensor:
        return torch.randn(2, channels, *size).to(dtype)

    def bn(channels: int) -> tuple:
        return torch.randn(channels), torch.rand(channels) + 0.5, torch.randn(channels), None

    y, x, dout = activation(4, 5, 4), activation(6, 9, 8), activation(12, 5, 4)
    own, none, pivot = bn(4), (None,) * 4, torch.rand(4)
    exact = pivot if dtype == torch.float32 else None
    weight, affine = torch.randn(12, 4, 1, 1), (torch.rand(12), torch.randn(12))
    vector = torch.randn(6)
    x_pivot = vector if dtype == torch.float32 else None
    expand = [
        (y, *own, exact, weight, *affine, *shortcut, True)
        for shortcut in (
            (*[None] * 5, [1, 1]),
            (dout, *[None] * 4, [1, 1]),
            (x, *[None] * 4, [2, 2]),
            (dout, None, None, *affine, [1, 1]),
            (x, x_pivot, torch.randn(12, 6, 1, 1), *affine, [2, 2]),
        )
    ]
    found: dict[str, list[tuple]] = {
        "moments": [(y, *own, pivot, [1, 1]), (x, *none, vector, [2, 2])],
        "expand": expand,
        "expand_reduce": [(*expand[0], torch.randn(3, 12, 1, 1))],
        "expand_backward_weight": [
            (dout, dout, y, *own, pivot, [1, 1]), (dout, None, x, *none, vector, [2, 2]),
        ],
        "expand_backward_data": [
            (dout, dout, y, *own, exact, torch.randn(12, 4).to(dtype),
             torch.eye(4).to(dtype), pivot, [1, 1]),
            (dout, None, x, *none, x_pivot, torch.randn(12, 6).to(dtype), None, None, [2, 2]),
        ],
    }  # fmt: skip
    square, product, wide = torch.eye(4), torch.randn(4, 12), [torch.rand(12) for _ in range(4)]
    found["moment_statistics"] = [
        (y, weight.to(dtype), vector[:4], square, pivot, *affine, 40, 1e-5),
        (y, weight, vector[:4], square, pivot, None, None, 0, 1e-5),
    ]
    kinds = ((vector[:4], None), (vector[:4], wide[2]), (None, None))
    found["moment_gradients"] = [
        (y, weight, product, *wide[:1], gamma, *wide[1:3], pivot, *kind)
        for gamma in (wide[3], None)
        for kind in kinds
    ]
    matrices = (torch.randn(12, 4).to(dtype), torch.randn(12, 4))
    found["moment_batch_gradients"] = [
        (y, weight, *matrices, *wide[:2], gamma, wide[2], pivot, vector[:4], square, *rest, 40)
        for gamma, rest in ((wide[3], (None, None)), (None, (wide[0], torch.tensor(50.0))))
    ]
    geometry, wide = ([2, 2], [1, 1], [1, 1], 1), torch.randn(12, 6, 3, 3)
    found["chain_backward"] = [
        (dout, mask, dout, *bn(12), *means, mask is None, x, wide, *geometry, *prologue,
         residual, residual_mask, [2, 2], mask_by_x, *wanted)
        for mask, means, prologue, residual, residual_mask, mask_by_x, wanted in (
            (dout, (None, None), none, None, None, False, (True, True)),
            (None, bn(12)[:2], bn(6), None, None, False, (True, False)),
            (None, bn(12)[:2], bn(6), None, None, False, (False, True)),
            (dout, bn(12)[:2], none, dout, dout, True, (True, True)),
        )
    ]  # fmt: skip
    pooled, index = launch.bn_max_pool(x, *bn(6), *WINDOW)
    stem = (pooled, index, x, *bn(6))
    found["bn_max_pool"] = [(x, *bn(6), *WINDOW)]
    found["bn_max_pool_backward_reduce"] = [(*stem, *WINDOW)]
    found["bn_max_pool_backward"] = [(*stem, *bn(6)[:2], *WINDOW), (*stem, None, None, *WINDOW)]
    return found


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [("reference", torch.float32), ("native", torch.float32), ("native", torch.bfloat16)],
)
def test_opcheck(backend, dtype, name):
    """Schema, no mutation, no aliasing, fake results like real ones, tracing with any sizes."""
    with fastres.backend(backend):
        samples = arguments(dtype)[name]
        assert samples
        for sample in samples:
            opcheck(getattr(launch, name).default, sample)


class Small(nn.Module):
    """Every public operator in front of a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = nn.ModuleList(
            BlockEnd(Case(kind, c_in=8, c_out=8, s_channels=8)) for kind in KINDS
        )
        self.fc = nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = max_pool2d(x, 3, 2, 1)
        for end in self.ends:
            x = end.fused(x, None if end.case.kind == "none" else x)
        return self.fc(pad_shortcut(x, 10, 2).mean((2, 3)))


def train(model: nn.Module, sizes: tuple[int, ...], call=None) -> dict[str, torch.Tensor]:
    found = {}
    for i, size in enumerate(sizes):
        x = torch.randn(size, 8, 9, 8, generator=torch.Generator().manual_seed(i))
        out = model(x) if call is None else call(x)
        out.square().sum().backward()
        found[f"out{i}"] = out.detach()
    found |= {name: p.grad for name, p in model.named_parameters()}
    return found | dict(model.named_buffers())


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_without_a_graph_break(dynamic):
    """fullgraph: a break raises, as does a second graph for other sizes. Statistics as in eager."""
    torch._dynamo.reset()
    eager = Small()
    compiled = copy.deepcopy(eager)
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    sizes = (2, 3, 5) if dynamic else (2, 2)
    with torch._dynamo.config.patch(error_on_recompile=True):
        got, want = train(compiled, sizes, call), train(eager, sizes)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert compiled.ends[0].bn.num_batches_tracked == len(sizes)


def test_compiled_under_autocast():
    torch._dynamo.reset()
    eager = Small()
    compiled = copy.deepcopy(eager)
    call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = train(compiled, (2,), call), train(eager, (2,))
    torch.testing.assert_close(got, want, rtol=5e-2, atol=5e-2)


class Around(nn.Module):
    """x, or -x where modules are called as they stand."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone() if obstacle_around() is None else -x


def test_compiling_is_told_from_exporting():
    torch._dynamo.reset()
    x, around = torch.ones(2), Around()
    call = torch.compile(around, backend="eager", fullgraph=True)
    assert torch.equal(call(x), x)
    for strict in (False, True):
        exported = torch.export.export(around, (x,), strict=strict).module()
        assert torch.equal(exported(x), -x)
    assert torch.equal(call(x), x)


def test_exported():
    model = Small().eval()
    x = torch.randn(4, 8, 9, 8)
    with torch.no_grad():
        program = torch.export.export(
            model, (x,), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},)
        )
        for n in (4, 7):
            x = torch.randn(n, 8, 9, 8)
            torch.testing.assert_close(program.module()(x), model(x))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"fastres.bn_apply.default", "fastres.conv_stats.default"} <= targets
    assert not any("batch_norm" in target for target in targets)


def test_symbolically_traced():
    model = Small()
    before = copy.deepcopy(model.state_dict())
    traced = torch.fx.symbolic_trace(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    called = {node.target.__name__ for node in traced.graph.nodes if node.op == "call_function"}
    assert {"conv_bn_act", "conv_bn_add_act", "pad_shortcut", "max_pool2d"} <= called
    twin = copy.deepcopy(model)
    torch.testing.assert_close(train(traced, (2, 3)), train(twin, (2, 3)))
    torch.testing.assert_close(dict(model.named_buffers()), dict(twin.named_buffers()))
