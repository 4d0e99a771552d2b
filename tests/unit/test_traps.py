"""Traps of batch normalisation that others fell into: each is a test here."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastres
from fastres import backends
from fastres.functional import BatchNormState, bn_act, bn_add_act, conv_bn_act, max_pool2d


@pytest.fixture(params=["reference", "native"], autouse=True)
def _backend(request):
    with fastres.backend(request.param):
        yield


def twins(**options) -> tuple[nn.BatchNorm2d, nn.BatchNorm2d]:
    """Two equal normalisations of four channels: one for torch, one for us."""
    first = nn.BatchNorm2d(4, **options)
    return first, copy.deepcopy(first)


def fused(y, bn, **options):
    return bn_act(y, BatchNormState.of(bn), relu=False, **options)


def assert_same_buffers(torchs, ours):
    for (name, want), (_, got) in zip(torchs.named_buffers(), ours.named_buffers(), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, 0.7, None])
def test_running_statistics_over_several_batches(momentum):
    """The unbiased variance is stored, the biased one normalises; None is the running average."""
    theirs, ours = twins(momentum=momentum)
    for size in (2, 5, 3):
        y = torch.randn(size, 4, 2, 1) * 3 + 1
        torch.testing.assert_close(fused(y, ours), theirs(y), rtol=1e-5, atol=1e-5)
        assert_same_buffers(theirs, ours)
    y = torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(fused(y, ours.eval()), theirs.eval()(y), rtol=1e-5, atol=1e-5)
    assert_same_buffers(theirs, ours)


def test_the_stored_variance_is_the_unbiased_one():
    bn = nn.BatchNorm2d(4, momentum=1.0)
    y = torch.randn(2, 4, 1, 1)
    fused(y, bn)
    torch.testing.assert_close(bn.running_var, y.var((0, 2, 3), correction=1))


@pytest.mark.parametrize("options", [{"track_running_stats": False}, {"affine": False}, {"eps": 1}])
def test_options_of_the_module(options):
    theirs, ours = twins(**options)
    for training in (True, False):
        theirs.train(training), ours.train(training)
        y = torch.randn(3, 4, 2, 2)
        torch.testing.assert_close(fused(y, ours), theirs(y), rtol=1e-5, atol=1e-5)
        assert_same_buffers(theirs, ours)


def test_tracking_switched_off_later():
    theirs, ours = twins()
    for bn in (theirs, ours):
        bn.track_running_stats = False
    for training in (True, False):
        theirs.train(training), ours.train(training)
        y = torch.randn(3, 4, 2, 2)
        torch.testing.assert_close(fused(y, ours), theirs(y), rtol=1e-5, atol=1e-5)
        assert_same_buffers(theirs, ours)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_an_empty_batch_changes_no_statistic(momentum):
    theirs, ours = twins(momentum=momentum)
    weight = torch.randn(4, 3, 1, 1, requires_grad=True)
    for size in (3, 0, 2):
        x = torch.randn(size, 3, 2, 2)
        want = theirs(torch.conv2d(x, weight))
        before = [b.clone() for b in (ours.running_mean, ours.running_var)]
        out = conv_bn_act(x, weight, BatchNormState.of(ours), relu=False)
        assert out.shape == want.shape
        assert_same_buffers(theirs, ours)
        if size == 0:
            assert torch.equal(before[0], ours.running_mean)
            assert torch.equal(before[1], ours.running_var)
    out = conv_bn_act(torch.randn(0, 3, 2, 2), weight, BatchNormState.of(ours))
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
    assert torch.equal(ours.weight.grad, torch.zeros(4))


def test_evaluation_then_training_then_the_evaluations_gradient():
    """Running statistics change in place between; the gradient is that of the values used."""
    theirs, ours = twins()
    y = torch.randn(3, 4, 3, 3)
    wants = y.clone().requires_grad_()
    with torch.no_grad():  # other statistics than 0 and 1
        theirs(y + 3), ours.load_state_dict(theirs.state_dict())
    theirs.eval()(wants).square().sum().backward()
    theirs.train()
    got = y.clone().requires_grad_()
    out = fused(got, ours.eval())
    fused(y * 5 + 2, ours.train())
    out.square().sum().backward()
    torch.testing.assert_close(got.grad, wants.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    torch.testing.assert_close(ours.bias.grad, theirs.bias.grad)


def test_the_first_call_updates_once():
    """Nothing is warmed up, tuned or rerun with the real buffers."""
    bn = nn.BatchNorm2d(37, momentum=0.5)
    y = torch.randn(2, 37, 11, 7)
    backends.reset_counts()
    fused(y, bn)
    assert bn.num_batches_tracked == 1
    torch.testing.assert_close(bn.running_mean, 0.5 * y.mean((0, 2, 3)))
    assert sum(backends.counts().values()) == 2


def test_autocast_twice_without_gradients_then_with():
    """A copy of the weight cached under no_grad must not cut the gradient off."""
    weight = nn.Parameter(torch.randn(4, 3, 3, 3))
    bn = nn.BatchNorm2d(4)
    x = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            first, second = (conv_bn_act(x, weight, BatchNormState.of(bn)) for _ in range(2))
        out = conv_bn_act(x, weight, BatchNormState.of(bn))
        assert out.dtype == torch.bfloat16
        with torch.no_grad():
            weight.add_(1)
        changed = conv_bn_act(x, weight, BatchNormState.of(bn))
    assert torch.equal(first, second)
    assert torch.equal(first, out)
    assert not torch.equal(changed, out)
    changed.sum().backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


def test_autocast_leaves_a_lone_normalisation_in_its_dtype():
    bn, y = nn.BatchNorm2d(4), torch.randn(2, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert bn_act(y, BatchNormState.of(bn)).dtype == torch.float32
        joined = bn_add_act(y.bfloat16(), BatchNormState.of(bn), y)
        assert joined.dtype == torch.bfloat16
        assert max_pool2d(y, 2).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision(dtype):
    if dtype == torch.float16 and backends.forced() == "native":
        pytest.skip("native takes no float16")
    bn = nn.BatchNorm2d(4).to(dtype)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).to(dtype))
    x = torch.randn(2, 3, 6, 6).to(dtype).requires_grad_()
    out = conv_bn_act(x, weight, BatchNormState.of(bn))
    out.float().square().sum().backward()
    assert {t.dtype for t in (out, x.grad, weight.grad, bn.weight.grad, bn.bias.grad)} == {dtype}
    assert bn.running_mean.dtype == dtype
    assert bn.running_mean.abs().sum() > 0


def test_normalisation_in_double_beside_single_precision():
    bn, y = nn.BatchNorm2d(4).double(), torch.randn(2, 4, 3, 3)
    out = bn_act(y, BatchNormState.of(bn))
    assert out.dtype == torch.float32
    out.sum().backward()
    assert bn.weight.grad.dtype == torch.float64


def test_state_survives_copies_and_pickle():
    module = nn.BatchNorm2d(4, momentum=None, eps=1e-3)
    state = BatchNormState.of(module)
    assert state.weight is module.weight
    for twin in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert twin.eps == 1e-3
        assert twin.momentum is None
        assert torch.equal(twin.running_var, state.running_var)
        bn_act(torch.randn(2, 4, 2, 2), twin)
        assert twin.num_batches_tracked == 1
    assert module.num_batches_tracked == 0


def test_inference_mode_and_then_training():
    bn = nn.BatchNorm2d(4)
    weight = nn.Parameter(torch.randn(4, 3, 1, 1))
    x = torch.randn(2, 3, 4, 4)
    with torch.inference_mode():
        seen = conv_bn_act(x, weight, BatchNormState.of(bn))
    assert seen.is_inference()
    out = conv_bn_act(x, weight, BatchNormState.of(bn))
    assert torch.equal(seen, out)
    out.sum().backward()
    assert bn.num_batches_tracked == 2


def test_statistics_do_not_take_part_in_the_graph():
    bn = nn.BatchNorm2d(4)
    fused(torch.randn(2, 4, 3, 3, requires_grad=True), bn)
    assert not any(b.requires_grad for b in bn.buffers())
    assert bn.running_mean.grad_fn is None


def test_meta_tensors_have_shapes_only():
    model = fastres.resnet20(fused=True).to("meta")
    with torch.no_grad():
        assert model(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
