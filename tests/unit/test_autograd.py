"""What the fused Functions keep, give, refuse and free."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from helpers.residual import KINDS, BlockEnd, Case, make
from torch.utils._python_dispatch import TorchDispatchMode

import fastres
from fastres import backends
from fastres.functional import (
    BatchNormState,
    bn_act,
    conv2d,
    conv_bn_act,
    conv_bn_add_act,
    max_pool2d,
    pad_shortcut,
)


@pytest.fixture(params=["reference", "native"], autouse=True)
def _backend(request):
    with fastres.backend(request.param):
        yield


class Launches(TorchDispatchMode):
    """Records the arguments of every launch operator."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "fastres":
            self.calls.append((function._opname, args))
        return function(*args, **(kwargs or {}))

    def arguments(self, name: str) -> list[tuple]:
        return [args for called, args in self.calls if called == name]


def leaves_of(block: BlockEnd, inputs) -> dict[str, torch.Tensor]:
    found = {"x": inputs.x} | dict(block.named_parameters())
    return found if inputs.shortcut is None else found | {"shortcut": inputs.shortcut}


def run(block: BlockEnd, inputs, wanted) -> tuple[dict, Launches]:
    leaves = leaves_of(block, inputs)
    for name, leaf in leaves.items():
        leaf.grad = None
        leaf.requires_grad_(name in wanted)
    out = block.fused(inputs.x, inputs.shortcut)
    with Launches() as launches:
        out.backward(inputs.dout)
    return {name: leaf.grad for name, leaf in leaves.items()}, launches


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_piece_alone_and_every_piece_left_out(kind, frozen):
    block, inputs = make(Case(kind, frozen=frozen, s_frozen=frozen, s_stride=2, spare=1))
    names = list(leaves_of(block, inputs))
    whole, _ = run(block, inputs, names)
    assert all(gradient is not None for gradient in whole.values())
    for wanted in [[name] for name in names] + [[n for n in names if n != out] for out in names]:
        found, launches = run(block, inputs, wanted)
        for name, gradient in found.items():
            if name in wanted:
                torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-5)
            else:
                assert gradient is None, name
        backward = launches.arguments("conv_bn_backward")
        inner = {"x", "conv.weight", "shortcut"} & set(wanted)
        assert len(backward) == bool(inner)
        for *_, need_dx, need_dw in backward:
            assert (need_dx, need_dw) == ("x" in wanted, "conv.weight" in wanted)
        vectors = set(wanted) - {"x", "conv.weight", "shortcut"}
        reductions = bool(vectors or (inner and not frozen))
        assert len(launches.arguments("bn_backward_reduce")) == reductions
        assert len(launches.calls) == len(backward) + reductions


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_derivative_is_refused(kind):
    block, inputs = make(Case(kind))
    inputs.x.requires_grad_()
    out = block.fused(inputs.x, inputs.shortcut)
    (dx,) = torch.autograd.grad(out.square().sum(), inputs.x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize(
    "function",
    [
        lambda x: conv2d(x, torch.ones(2, 3, 1, 1)),
        lambda x: pad_shortcut(x, 4, 2),
        lambda x: max_pool2d(x, 2),
        lambda x: bn_act(x, BatchNormState.of(torch.nn.BatchNorm2d(3))),
    ],
    ids=["conv2d", "pad_shortcut", "max_pool2d", "bn_act"],
)
def test_a_second_derivative_of_the_others_is_refused(function):
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    (dx,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_without_backward_frees_everything(kind):
    """The regression elsewhere: the output kept as an attribute of ctx is a cycle."""
    block, inputs = make(Case(kind))
    gc.collect()
    gc.disable()
    try:
        x = inputs.x.clone().requires_grad_()
        out = block.fused(x, inputs.shortcut)
        watched = [weakref.ref(x), weakref.ref(out), weakref.ref(out.grad_fn)]
        ours = {block.conv.weight.data_ptr(), inputs.x.data_ptr()}
        if inputs.shortcut is not None:
            ours.add(inputs.shortcut.data_ptr())
        saved = [t for t in out.grad_fn.saved_tensors if t is not None and t.dim() == 4]
        watched += [weakref.ref(t.untyped_storage()) for t in saved if t.data_ptr() not in ours]
        del x, out, saved
        assert [reference() for reference in watched] == [None] * len(watched)
    finally:
        gc.enable()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved(kind, frozen):
    """Activations: x, y, the shortcut that has a BN, and the output behind a shortcut."""
    block, inputs = make(Case(kind, frozen=frozen, s_frozen=frozen))
    saved = []

    def pack(tensor):
        if tensor.dim() == 4 and tensor is not block.conv.weight:
            saved.append(tensor.data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block.fused(inputs.x, inputs.shortcut)
    assert len(set(saved)) == {"none": 2, "identity": 3, "pad": 3, "bn": 4}[kind]


def test_nothing_is_kept_where_no_gradient_is_wanted():
    block, inputs = make(Case())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            out = block.fused(inputs.x, None)
        assert out.grad_fn is None
        assert not out.requires_grad
    assert block.bn.num_batches_tracked == 2


@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice(kind):
    block, inputs = make(Case(kind))
    inputs.x.requires_grad_()
    out = block.fused(inputs.x, inputs.shortcut)
    first, second = (
        torch.autograd.grad(out, inputs.x, inputs.dout, retain_graph=keep)[0]
        for keep in (True, False)
    )
    assert torch.equal(first, second)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(out, inputs.x, inputs.dout)


@pytest.mark.parametrize("changed", ["x", "weight", "gamma", "shortcut", "out"])
def test_a_change_in_place_before_the_backward_is_noticed(changed):
    block, inputs = make(Case("bn"))
    x = inputs.x.clone().requires_grad_()
    shortcut = inputs.shortcut.clone()
    inside = x * 1
    out = block.fused(inside, shortcut)
    victim = {"x": inside, "weight": block.conv.weight, "gamma": block.bn.weight,
              "shortcut": shortcut, "out": out}[changed]  # fmt: skip
    with torch.no_grad():
        victim.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.backward(inputs.dout)


def test_a_change_of_the_output_in_place_after_an_operator_that_does_not_keep_it():
    """Without a shortcut the mask is computed again from y: the gradient is right."""
    block, inputs = make(Case())
    inputs.x.requires_grad_()
    out = block.fused(inputs.x, None)
    (want,) = torch.autograd.grad(out * 3, inputs.x, inputs.dout)
    out = block.fused(inputs.x, None)
    out.mul_(3)
    (got,) = torch.autograd.grad(out, inputs.x, inputs.dout)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "dout",
    [
        lambda shape: torch.ones(()).expand(shape),
        lambda shape: torch.arange(float(shape[1])).view(1, -1, 1, 1).expand(shape),
        lambda shape: torch.randn(shape),
        lambda shape: torch.randn(shape).contiguous(memory_format=torch.channels_last),
        lambda shape: torch.randn(shape[::-1]).permute(3, 2, 1, 0),
        lambda shape: torch.randn(*shape[:3], 2 * shape[3])[..., ::2],
    ],
    ids=["expanded", "expanded channels", "NCHW", "channels_last", "permuted", "strided"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_of_any_layout(kind, dout):
    block, inputs = make(Case(kind, relu=False))
    leaves = [t.requires_grad_() for t in (inputs.x, inputs.shortcut) if t is not None]
    given = dout(inputs.dout.shape)
    dense = given.contiguous(memory_format=torch.channels_last)
    results = []
    for gradient in (given, dense):
        out = block.fused(inputs.x, inputs.shortcut)
        results.append(torch.autograd.grad(out, leaves, gradient))
    for got, want in zip(*results, strict=True):
        # PyTorch's sums, in the reference, go another way through another layout
        unit = 0 if backends.forced() == "native" else 1e-5
        torch.testing.assert_close(got, want, rtol=unit, atol=unit)
        assert got.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.contiguous(memory_format=torch.channels_last),
        lambda w: torch.cat([w, w], 1)[:, : w.shape[1]],
        lambda w: w.transpose(2, 3).contiguous().transpose(2, 3),
        lambda w: w[:1].expand_as(w),
        lambda w: w.to(torch.bfloat16),
    ],
    ids=["channels_last", "sliced", "transposed", "expanded", "bf16"],
)
def test_the_weights_gradient_has_the_weights_layout(change):
    weight = change(torch.randn(6, 4, 3, 3)).requires_grad_()
    x = torch.randn(2, 4, 5, 6).to(weight.dtype)
    bn = torch.nn.BatchNorm2d(6)
    dout = torch.randn(2, 6, 3, 4).to(weight.dtype)
    for function in (conv2d, lambda x, w: conv_bn_act(x, w, BatchNormState.of(bn), relu=False)):
        (got,) = torch.autograd.grad(function(x, weight), weight, dout)
        plain = weight.detach().contiguous().requires_grad_()
        (want,) = torch.autograd.grad(function(x, plain), plain, dout)
        torch.testing.assert_close(got, want)
        assert got.dtype == weight.dtype
        assert got.stride() == torch.empty_like(weight).stride()


def test_a_shortcut_that_is_the_input_gets_both_gradients():
    weight, bn = torch.randn(4, 4, 3, 3), torch.nn.BatchNorm2d(4)
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    conv_bn_add_act(x, weight, BatchNormState.of(bn), x, padding=1).sum().backward()
    plain = x.detach().clone().requires_grad_()
    out = torch.nn.BatchNorm2d(4)(torch.conv2d(plain, weight, padding=1)) + plain
    out.relu().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_one_backend_runs_forward_and_backward():
    block, inputs = make(Case())
    backends.reset_counts()
    block.fused(inputs.x, None).backward(inputs.dout)
    assert {key.partition(":")[2] for key in backends.counts()} == {backends.forced()}
