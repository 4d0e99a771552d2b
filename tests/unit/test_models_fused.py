"""Whole fused networks: proof that they ran fused, and what people do to networks."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fastres import backends, models
from fastres.layers import Bottleneck

FP64 = {"rtol": 1e-7, "atol": 1e-9}


def tiny_bottleneck(fused: bool, **options) -> nn.Module:
    return models.ResNet(
        Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=8, fused=fused, **options
    )


def both(name: str, **options) -> tuple[nn.Module, nn.Module]:
    """The network fused and not, from one seed, in double precision."""
    made = []
    for fused in (True, False):
        torch.manual_seed(0)
        if name == "bottleneck":
            model = tiny_bottleneck(fused, **options)
        elif name == "resnet8":
            model = models.CifarResNet(8, fused=fused, **options)
        else:
            model = models.create(name, num_classes=10, fused=fused, **options)
        made.append(model.double())
    return made[0], made[1]


# what is in moment form: the last convolution of a bottleneck and the projection
ENDS = ("conv3.weight", "downsample.0.weight")


def images(size: int = 32) -> torch.Tensor:
    return torch.randn(3, 3, size, size, dtype=torch.float64)


def launched(operator: str) -> int:
    """Launches of `operator` on any backend."""
    return sum(n for key, n in backends.counts().items() if key.startswith(f"{operator}:"))


def train(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """One step of training: everything it left behind."""
    out = model(x)
    nn.functional.cross_entropy(out, torch.arange(x.shape[0])).backward()
    found = {"out": out, **dict(model.named_buffers())}
    found |= {f"d{key}": p.grad for key, p in model.named_parameters() if p.grad is not None}
    return {key: tensor.detach().clone() for key, tensor in found.items()}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"shortcut": "A"}),
        ("resnet18", {"shortcut": "C"}),
        ("plain18", {}),
        ("bottleneck", {"variant": "v1"}),
        ("bottleneck", {"variant": "v1.5", "groups": 2}),
        ("bottleneck", {"shortcut": "A"}),
        ("bottleneck", {"shortcut": "A", "variant": "v1"}),
        ("bottleneck", {"shortcut": "C"}),
        ("bottleneck", {"memory": "low"}),
        ("bottleneck", {"memory": "low", "variant": "v1", "shortcut": "A"}),
        ("bottleneck", {"memory": "low", "shortcut": "C"}),
        ("bottleneck", {"replace_stride_with_dilation": (False, True, True)}),
        ("bottleneck", {"replace_stride_with_dilation": (True, False, True), "shortcut": "A"}),
        ("resnet20", {}),
        ("resnet20", {"shortcut": "B", "zero_init_residual": True}),
        ("resnet20", {"shortcut": "C"}),
        ("plain20", {}),
    ],
)
def test_fused_is_the_same_network(name, options):
    fused, unfused = both(name, **options)
    x = images(32 if name.endswith("20") else 64)
    backends.reset_counts()
    got = train(fused, x)
    torch.testing.assert_close(got, train(unfused, x), **FP64)
    assert not any(buffer.requires_grad for buffer in fused.buffers())

    # each convolution once, in memory or in moment form, and once backwards
    convolutions = sum(isinstance(m, nn.Conv2d) for m in fused.modules())
    in_moment_form = launched("moments")
    assert (in_moment_form > 0) == (options.get("memory") == "low")
    if options.get("memory") == "low":
        assert launched("moments") == len(
            [k for k in got if k.startswith("d") and k.endswith(ENDS)]
        )
    assert launched("conv_stats") + launched("expand_reduce") + in_moment_form == convolutions
    assert launched("expand_backward_weight") == in_moment_form
    assert launched("chain_backward") + in_moment_form == convolutions - 1
    assert launched("conv_backward") + launched("conv_bn_backward") == 1
    assert launched("pad_shortcut") == 0

    with torch.no_grad():
        torch.testing.assert_close(fused.eval()(x), unfused.eval()(x), **FP64)


def test_unfused_launches_nothing():
    backends.reset_counts()
    for name in ("resnet18", "resnet20", "plain20"):
        train(models.create(name), torch.randn(3, 3, 64, 64))
    assert not backends.counts()


def test_frozen_backbone():
    """Fine-tuning: everything below layer4 frozen, its BNs in eval mode."""
    fused, unfused = both("resnet18")
    x = images(64)
    for model in (fused, unfused):
        train(model, x)
        model.zero_grad()
        for name, module in model.named_children():
            if name not in ("layer4", "fc"):
                module.eval().requires_grad_(False)
    before = fused.bn1.running_mean.clone()
    got = train(fused, x)
    torch.testing.assert_close(got, train(unfused, x), **FP64)
    assert torch.equal(fused.bn1.running_mean, before)
    assert "dconv1.weight" not in got


@pytest.mark.parametrize("name", ["resnet18", "bottleneck", "resnet20", "plain20"])
def test_conversion_to_synchronised_batch_norm(name):
    fused, unfused = both(name)
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(fused))
    norms = [type(m) for m in converted.modules() if "BatchNorm" in type(m).__name__]
    assert norms
    assert set(norms) == {nn.SyncBatchNorm}
    assert list(converted.state_dict()) == list(fused.state_dict())
    x = images(64)
    backends.reset_counts()
    got = train(converted, x)
    assert launched("bn_apply") > 0
    torch.testing.assert_close(got, train(unfused, x), **FP64)
    with torch.no_grad():
        torch.testing.assert_close(converted.eval()(x), unfused.eval()(x), **FP64)


def test_synchronised_batch_norm_in_a_world_of_one(tmp_path):
    fused, unfused = both("resnet20")
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(fused)
    x = images()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        got = train(converted, x)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(got, train(unfused, x), **FP64)


@pytest.mark.parametrize("name", ["resnet18", "resnet20", "plain20"])
def test_symbolic_trace(name):
    fused, unfused = both(name)
    before = copy.deepcopy(fused.state_dict())
    traced = torch.fx.symbolic_trace(fused)
    for key, tensor in fused.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert not any(
        node.op == "call_module" and isinstance(traced.get_submodule(node.target), nn.BatchNorm2d)
        for node in traced.graph.nodes
    )
    # the trace shares the parameters and buffers, and runs the same fused operators
    x = images(64)
    backends.reset_counts()
    got = train(traced, x)
    assert launched("bn_apply") > 0
    torch.testing.assert_close(got, train(unfused, x), **FP64)


def test_hooked_network_falls_back_and_returns():
    fused, unfused = both("resnet18")
    seen = []
    handles = [
        module.register_forward_hook(lambda *_: seen.append(1))
        for module in fused.modules()
        if isinstance(module, nn.Conv2d)
    ]
    x = images(64)
    backends.reset_counts()
    got = train(fused, x)
    assert len(seen) == len(handles) == 20
    assert not launched("bn_apply")
    torch.testing.assert_close(got, train(unfused, x), **FP64)
    for handle in handles:
        handle.remove()
    train(fused, x)
    assert launched("chain_backward") == 19


@pytest.mark.parametrize("name", ["resnet18", "resnet20"])
def test_a_copy_trains_alone(name):
    fused, _ = both(name)
    twin = copy.deepcopy(fused)
    before = copy.deepcopy(fused.state_dict())
    train(twin, images(64))
    for key, tensor in fused.state_dict().items():
        assert torch.equal(tensor, before[key]), key
    assert twin.bn1.num_batches_tracked == 1


def test_functional_call():
    """Parameters given from outside, as torch.func does it."""
    fused, unfused = both("resnet20")
    given = {key: torch.randn_like(p) * 0.1 for key, p in fused.named_parameters()}
    x = images()
    out, expected = (torch.func.functional_call(m.eval(), given, (x,)) for m in (fused, unfused))
    torch.testing.assert_close(out, expected, **FP64)


@pytest.mark.parametrize("name", ["bottleneck", "resnet8"])
def test_compiles_without_a_graph_break(name):
    fused, unfused = both(name)
    x = images(64)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    nn.functional.cross_entropy(compiled(x), torch.arange(3)).backward()
    expected = train(unfused, x)
    for key, tensor in fused.named_buffers():
        assert not tensor.requires_grad, key
        torch.testing.assert_close(tensor, expected[key], **FP64)
    for key, p in fused.named_parameters():
        torch.testing.assert_close(p.grad, expected[f"d{key}"], **FP64)
    with torch.no_grad():
        torch.testing.assert_close(compiled.eval()(x), unfused.eval()(x), **FP64)


@pytest.mark.parametrize("name", ["resnet18", "bottleneck", "resnet20"])
def test_autocast(name):
    fused, unfused = (m.float() for m in both(name))
    x = images(64).float()
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = fused(x), unfused(x)
    assert got.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(got, expected, rtol=0.1, atol=0.1)
    got.float().square().mean().backward()
    assert {p.grad.dtype for p in fused.parameters()} == {torch.float32}
