"""`fastres.optimize`: the same numbers from fewer passes, and the model given as it was."""

from __future__ import annotations

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastres
from fastres.bench import EAGER, FUSED, Comparison, cases, peers
from fastres.inference import Difference, Optimized
from fastres.inference.convolution import SIZES, Convolution
from fastres.inference.fold import folded
from fastres.layers import BasicBlock, Bottleneck
from fastres.models import ResNet


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """With BN's vectors as training might leave them, in eval mode."""
    random = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for vector, low in (
                (module.running_mean, -0.5),
                (module.running_var, 0.5),
                (module.weight, 0.5),
                (module.bias, -0.5),
            ):
                if vector is not None:
                    vector.data.uniform_(low, low + 1, generator=random)
    return model.eval()


def network(block=Bottleneck, layers=(1, 2, 1, 1), **options) -> nn.Module:
    torch.manual_seed(0)
    return trained(ResNet(block, layers, num_classes=10, **options))


def images(n: int = 2, size: int = 40, channels: int = 3, **kind) -> torch.Tensor:
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(1)).to(
        **kind
    )


def convolutions(model: nn.Module) -> list[Convolution]:
    return [module for module in model.modules() if isinstance(module, Convolution)]


def assert_like(optimized: nn.Module, model: nn.Module, x: torch.Tensor, rtol: float = 1e-5):
    with torch.no_grad():
        expected, found = model(x), optimized(x)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert (found - expected).abs().max() <= rtol * expected.abs().max()


NETWORKS = {
    "bottleneck": lambda fused: network(fused=fused),
    "basic": lambda fused: network(BasicBlock, fused=fused),
    "v1, option C": lambda fused: network(fused=fused, variant="v1", shortcut="C"),
    "option A": lambda fused: network(BasicBlock, fused=fused, shortcut="A"),
    "grouped, dilated": lambda fused: network(
        groups=2,
        width_per_group=32,
        replace_stride_with_dilation=(False, True, True),
        fused=fused,
    ),
    "cifar": lambda fused: trained(fastres.resnet20(fused=fused)),
    "plain": lambda fused: trained(fastres.plain20(fused=fused)),
}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_own_networks(name, fused):
    model = NETWORKS[name](fused)
    optimized = fastres.optimize(model)
    assert optimized.difference.relative <= 1e-5
    assert not any(isinstance(module, nn.BatchNorm2d) for module in optimized.modules())
    assert len(convolutions(optimized)) == sum(isinstance(m, nn.Conv2d) for m in model.modules())
    assert_like(optimized, model, images())


@pytest.mark.parametrize("size", [(33, 65), (47, 31), (32, 224)])
@pytest.mark.parametrize("batch", [1, 3])
def test_odd_sizes_and_strides(batch, size):
    model = network()
    optimized = fastres.optimize(model)
    x = torch.randn(batch, 3, *size)
    assert_like(optimized, model, x)
    assert_like(optimized, model, x.to(memory_format=torch.channels_last))
    wide = torch.randn(batch, 6, size[0], 2 * size[1])
    assert_like(optimized, model, wide[:, ::2, :, ::2])


def test_more_sizes_than_are_kept():
    model = network()
    optimized = fastres.optimize(model, images())
    for n in range(1, SIZES + 3):
        assert_like(optimized, model, images(n, 32 + n))
    assert {len(conv._kernels) for conv in convolutions(optimized)} == {SIZES}
    assert optimized(images(0)).shape == (0, 10)


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [
        (torch.float64, 1e-5),
        (torch.float32, 1e-5),
        (torch.bfloat16, 3e-2),
        (torch.float16, 5e-3),
    ],
)
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_dtypes(block, dtype, bound):
    model = network(block)
    optimized = fastres.optimize(model, images(), dtype=dtype)
    assert optimized.difference.relative <= bound
    assert {conv.weight.dtype for conv in convolutions(optimized)} == {dtype}
    assert optimized(images()).dtype == torch.float32
    assert optimized(images(dtype=dtype)).dtype == dtype


def test_fp64_is_exact_to_fp64():
    model = network().double()
    optimized = fastres.optimize(model)
    assert optimized.difference.relative <= optimized.difference.tolerance == 1e-9
    assert_like(optimized, model, images(dtype=torch.float64), rtol=1e-12)


def test_autocast_around_it_changes_nothing():
    optimized = fastres.optimize(network())
    expected = optimized(images())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(optimized(images()), expected)


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("size", [3, 7, 8, 15, 32])
def test_winograd_with_an_epilogue(size, relu, shortcut, backend):
    """Against fp64: a 3x3 at stride 1, through Winograd's form where the native backend runs."""
    if fastres.backends.available()[backend] is not None:
        pytest.skip(fastres.backends.available()[backend])
    torch.manual_seed(size)
    conv = nn.Conv2d(32, 64, 3, padding=1)
    weight, bias = folded(conv, None)
    ours = Convolution(weight, bias, conv, torch.float32, relu=relu)
    x, other = torch.randn(3, 32, size, size), torch.randn(3, 64, size, size)
    with fastres.backend(backend), torch.no_grad():
        found = ours(x, other) if shortcut else ours(x)
    expected = F.conv2d(x.double(), weight, bias, padding=1)
    expected = expected + other.double() if shortcut else expected
    expected = expected.relu() if relu else expected
    assert (found - expected).abs().max() <= 1e-5
    assert (ours._filters is not None) == (backend == "native" and size != 3)


def test_winograd_keeps_nan():
    conv = nn.Conv2d(32, 32, 3, padding=1)
    ours = Convolution(*folded(conv, None), conv, torch.float32, relu=True)
    x = torch.zeros(1, 32, 8, 8)
    x[0, 0, 3, 3] = float("nan")
    assert ours(x).isnan()[0, 0, 2:5, 2:5].all()


def sequence(**options) -> nn.Sequential:
    torch.manual_seed(0)
    return trained(
        nn.Sequential(
            nn.Conv2d(4, 8, 3, padding=1),
            nn.BatchNorm2d(8, **options),
            nn.ReLU(),
            nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16), nn.Dropout(0.5)),
            nn.Conv2d(16, 8, 3, stride=2, bias=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"),
            nn.ConvTranspose2d(4, 2, 2),
        )
    )


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"eps": 0.1}])
def test_a_sequence_with_biases(options):
    model = sequence(**options)
    optimized = fastres.optimize(model)
    assert_like(optimized, model, images(channels=4))
    names = [type(module).__name__ for module in optimized.module.children()]
    assert names == ["Convolution", "Convolution", "Convolution", "Conv2d", "ConvTranspose2d"]


def test_statistics_of_the_batch_are_not_folded():
    model = sequence(track_running_stats=False)
    optimized = fastres.optimize(model)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in optimized.modules()) == 1
    assert_like(optimized, model, images(channels=4))


class Unknown(nn.Module):
    """A forward that must not be looked into, around parts that may."""

    def __init__(self) -> None:
        super().__init__()
        self.body = sequence()
        self.conv = nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert type(x) is torch.Tensor
        return self.conv(self.body(x)) * self.conv.weight.mean()


def test_inside_an_unknown_module():
    model = Unknown().eval()
    optimized = fastres.optimize(model, images(channels=4))
    assert type(optimized.module) is Unknown
    assert type(optimized.module.conv) is nn.Conv2d
    assert len(convolutions(optimized)) == 3
    assert_like(optimized, model, images(channels=4))


@pytest.mark.parametrize(
    "name",
    ["conv1", "bn1", "relu", "layer2.0.conv2", "layer2.0.bn3", "layer2.0.downsample.0", "layer2.1",
     "layer3"],
)  # fmt: skip
def test_a_hooked_module_stays(name):
    model = network()
    seen = []
    hooked = model.get_submodule(name)
    hooked.register_forward_hook(lambda module, x, out: seen.append((type(module), out.clone())))
    optimized = fastres.optimize(model)
    seen.clear()
    with torch.no_grad():
        expected, found = model(images()), optimized(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    half = len(seen) // 2
    assert half >= 1
    for (kind, theirs), (kind_of_ours, ours) in zip(seen[:half], seen[half:], strict=True):
        assert kind_of_ours is kind
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_a_hook_that_changes_the_output():
    model = network()
    model.layer1[0].conv1.register_forward_hook(lambda module, x, out: out * 2)
    model.register_forward_pre_hook(lambda module, x: (x[0] + 1,))
    assert_like(fastres.optimize(model), model, images())


def test_a_replaced_module_stays():
    model = network()
    model.layer3[0].relu = nn.GELU()
    model.layer4[0].bn2 = nn.GroupNorm(2, 512)
    optimized = fastres.optimize(model)
    assert sum(isinstance(module, nn.GroupNorm) for module in optimized.modules()) == 1
    assert_like(optimized, model, images())


def test_an_own_forward_is_called():
    model = network()
    block = model.layer2[1]
    block.forward = lambda x: x * 2
    assert_like(fastres.optimize(model), model, images())


def test_a_shared_module_is_optimised_once():
    part = sequence()[:2]
    part[0] = nn.Conv2d(8, 8, 1)
    model = trained(nn.Sequential(part, nn.ReLU(), part))
    optimized = fastres.optimize(model)
    assert_like(optimized, model, images(channels=8))


def test_the_model_is_untouched():
    model = network(fused=True).train()
    before = copy.deepcopy(model.state_dict())
    kinds = [type(module) for module in model.modules()]
    optimized = fastres.optimize(model)
    assert model.training
    assert all(module.training for module in model.modules())
    assert [type(module) for module in model.modules()] == kinds
    assert model.fused
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    model(images())  # it trains on
    assert not torch.equal(model.bn1.running_mean, before["bn1.running_mean"])
    assert not optimized.training


def test_it_keeps_its_own_state():
    model = network()
    optimized = fastres.optimize(model)
    expected = optimized(images())
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(optimized(images()), expected)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copied_and_pickled(twin):
    optimized = fastres.optimize(network(), images())
    other = twin(optimized)
    assert torch.equal(other(images()), optimized(images()))
    assert other.difference == optimized.difference


def test_its_input_is_not_changed():
    model = trained(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)))
    x = images()
    kept = x.clone()
    fastres.optimize(model)(x)
    assert torch.equal(x, kept)


def test_what_is_changed_in_place_is_not_read_late():
    model = trained(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True), nn.ReLU(inplace=True)))
    assert_like(fastres.optimize(model), model, images())


def test_the_result_has_no_gradient_and_stays_in_eval_mode():
    optimized = fastres.optimize(network())
    assert not optimized(images().requires_grad_()).requires_grad
    assert optimized.eval() is optimized
    with pytest.raises(RuntimeError, match="stays in eval mode"):
        optimized.train()
    assert isinstance(optimized, Optimized)


def test_no_random_numbers_of_others_are_drawn():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    fastres.optimize(sequence().eval(), images(channels=4))
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), state)
    model = sequence()
    torch.manual_seed(3)
    fastres.optimize(model)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_difference():
    found = fastres.optimize(network(), tolerance=0.5).difference
    assert isinstance(found, Difference)
    assert 0 < found.relative < 1e-4
    assert found.tolerance == 0.5
    assert found.absolute > 0


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        ({"model": nn.Linear(2, 2)}, ValueError, "model must hold a convolution .* got Linear"),
        ({"model": nn.Linear(2, 2), "example": torch.ones(1, 2)}, ValueError, "got Linear"),
        ({"model": nn.Conv2d(3, 2, 1)}, ValueError, "model must hold a convolution .* got Conv2d"),
        ({"dtype": torch.int8}, TypeError, "dtype must be one of .* got torch.int8"),
        ({"tolerance": -1}, ValueError, "tolerance must be at least 0 or None, got -1"),
        ({"tolerance": 0.0}, ValueError, "within tolerance=0 of the model's, got a relative"),
        ({"cuda_graph": True}, ValueError, "cuda_graph must be False unless .* got cpu"),
        ({"example": torch.ones(1, 5, 9, 9)}, ValueError, r"example must be what Sequential takes, "
         r"got float32 \[1, 5, 9, 9\] on cpu"),
    ],
)  # fmt: skip
def test_errors(arguments, error, text):
    arguments = {"model": sequence(), **arguments}
    with pytest.raises(error, match=text):
        fastres.optimize(**arguments)


def test_a_compiled_or_wrapped_model_is_refused():
    with pytest.raises(TypeError, match=r"model must be optimised before torch\.compile: it is a"):
        fastres.optimize(torch.compile(sequence(), backend="eager"))
    wrapped = nn.Sequential(nn.DataParallel(sequence()))
    with pytest.raises(TypeError, match="before it is wrapped in DataParallel: its 0 is a Data"):
        fastres.optimize(wrapped)


class Reader(nn.Module):
    """Calls the parts of a network by name."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.layer1(self.net.maxpool(self.net.conv1(x)))


def test_reading_a_part_that_is_replaced():
    with pytest.raises(ValueError, match="must not read modules of a part that is replaced"):
        fastres.optimize(Reader().eval())


def test_an_input_of_another_dtype_is_refused():
    optimized = fastres.optimize(sequence())
    with pytest.raises(RuntimeError, match=r"x must have the dtype of the weights, .* got"):
        optimized(images(channels=4).double())


def test_three_dimensions_are_refused():
    optimized = fastres.optimize(sequence())
    with pytest.raises(ValueError, match=r"x must be \[N, C, H, W\], got \[4, 9, 9\]"):
        optimized(torch.ones(4, 9, 9))


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fastres.optimize(network(), dtype=torch.bfloat16)(images())


def test_the_benchmark_compares_forward_passes():
    comparison = Comparison(cases.inference("basic10", 2, 32))
    comparison.prepare(FUSED, peers.OPTIMIZED)
    comparison.measure(1)
    assert {entry.status for entry in comparison.entries.values()} == {"measured"}
    assert set(comparison.entries) == {EAGER, FUSED, peers.OPTIMIZED}
    assert comparison.entries[peers.OPTIMIZED].verdict.worst == "output"
    training = cases.network("basic10", 2, 32)
    for name in (peers.OPTIMIZED, peers.FROZEN):
        assert "for inference" in peers.get(name).unavailable(training)
