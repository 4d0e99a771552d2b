"""Which backend runs, how it is forced, and the proof that the fused path ran at all."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastres
from fastres import backends
from fastres.functional import BatchNormState, bn_act, conv_bn_act

CPU = torch.device("cpu")
BN = BatchNormState(None, None, None, None)


def y(dtype=torch.float32):
    return torch.randn(2, 3, 4, 4).to(dtype)


@pytest.fixture(autouse=True)
def _nothing_forced(monkeypatch):
    monkeypatch.delenv("FASTRES_BACKEND", raising=False)
    backends.reset_counts()


def used() -> set[str]:
    return {key.partition(":")[2] for key in backends.counts()}


def in_a_process(code: str, **environment: str) -> str:
    """stdout of `code` without this process's TRITON_INTERPRET."""
    kept = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "FASTRES_BACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (torch.float32, "native"),
        (torch.bfloat16, "native"),
        (torch.float16, "reference"),
        (torch.float64, "reference"),
    ],
)
def test_the_choice_on_a_cpu(dtype, name):
    assert backends.available()["native"] is None
    assert backends.chosen(CPU, dtype) == name
    bn_act(y(dtype), BN)
    assert backends.counts() == Counter({f"bn_stats:{name}": 1, f"bn_apply:{name}": 1})


def test_contexts_nest_and_restore():
    assert backends.forced() is None
    with fastres.backend("reference"):
        bn_act(y(), BN)
        with fastres.backend("native"):
            assert backends.forced() == "native"
        assert backends.forced() == "reference"
        with pytest.raises(ZeroDivisionError), fastres.backend("native"):
            _ = 1 / 0
        assert backends.forced() == "reference"
    assert backends.forced() is None
    assert used() == {"reference"}


def test_a_context_is_of_its_thread():
    seen = []
    with fastres.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.forced()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("call", [
    lambda x, w: conv_bn_act(x, w, BN),
    lambda x, w: bn_act(x, BN),
    lambda x, w: fastres.functional.conv2d(x, w),
    lambda x, w: fastres.functional.max_pool2d(x, 2),
    lambda x, w: fastres.pad_shortcut(x, 8),
    lambda x, w: fastres.conv_bn_max_pool(x, w, BN),
    lambda x, w: fastres.residual_blocks(x, [fastres.ResidualBlock((fastres.ConvBN(w, BN),))]),
])  # fmt: skip
def test_the_backward_pass_keeps_the_backend_of_its_forward(call):
    """On a GPU autograd runs it on another thread, where the context is not in force."""
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    with fastres.backend("reference"):
        out = call(x, torch.randn(4, 4, 1, 1, requires_grad=True))
    thread = threading.Thread(target=lambda: out.sum().backward())
    thread.start()
    thread.join()
    assert x.grad is not None
    assert used() == {"reference"}


def test_the_environment_forces(monkeypatch):
    monkeypatch.setenv("FASTRES_BACKEND", "reference")
    bn_act(y(), BN)
    assert used() == {"reference"}
    with fastres.backend("native"):
        assert backends.chosen(CPU, torch.float32) == "native"
    monkeypatch.setenv("FASTRES_BACKEND", "")
    assert backends.chosen(CPU, torch.float32) == "native"


def test_wrong_names(monkeypatch):
    message = "name must be one of native, triton, reference, got 'cuda'"
    with pytest.raises(ValueError, match=message), fastres.backend("cuda"):
        pass
    monkeypatch.setenv("FASTRES_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTRES_BACKEND must be one of"):
        bn_act(y(), BN)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_forcing_native_with_a_dtype_it_does_not_take(dtype):
    with (
        fastres.backend("native"),
        pytest.raises(RuntimeError, match=f"'native' is forced but cannot run: .*{dtype}"),
    ):
        bn_act(y(dtype), BN)


def test_forcing_triton_without_a_gpu_or_the_interpreter():
    code = """
import torch, fastres
if torch.cuda.is_available(): print("raised", end=""); raise SystemExit
assert fastres.backends.available()["triton"]
try:
    with fastres.backend("triton"): pass
except RuntimeError as error:
    assert "'triton' cannot run here" in str(error), error
    print("raised", end="")
"""
    assert in_a_process(code) == "raised"


def test_forcing_triton_by_the_environment_without_a_gpu_or_the_interpreter():
    code = """
import torch, fastres
try:
    fastres.bn_act(torch.randn(2, 3, 4, 4), fastres.BatchNormState(None, None, None, None))
except RuntimeError as error:
    assert "'triton' is forced but cannot run" in str(error), error
    print("raised", end="")
"""
    assert in_a_process(code, FASTRES_BACKEND="triton") == "raised"


def test_without_the_extension_the_reference_runs():
    code = """
import torch, fastres
bn = fastres.BatchNormState(None, None, None, None)
fastres.bn_act(torch.randn(2, 3, 4, 4), bn)
assert (fastres.backends.available()["native"] is None) == ("bn_stats:native" in
    fastres.backends.counts())
print(*sorted(fastres.backends.counts()))
"""
    ran = in_a_process(code, FASTRES_BUILD="0", FASTRES_CACHE=os.devnull).split()
    if "bn_stats:native" in ran:
        pytest.skip("the extension was built ahead of time")
    assert ran == ["bn_apply:reference", "bn_stats:reference"]


class Seen(TorchDispatchMode):
    """Counts the operators of PyTorch itself."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names[f"{function.namespace}.{function._opname}"] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(("name", "size"), [("resnet18", 64), ("resnet20", 16)])
def test_the_fused_path_ran(name, size):
    """Every convolution, normalisation, ReLU and sum of the network is in a counted launch."""
    model = getattr(fastres, name)(fused=True)
    x = torch.randn(2, 3, size, size)
    with Seen() as seen:
        model(x).sum().backward()
    imagenet = name == "resnet18"
    convolutions, projections = (20, 3) if imagenet else (19, 0)
    blocks = (convolutions - projections) // 2
    stem = (
        ("bn_max_pool", "bn_max_pool_backward_reduce", "bn_max_pool_backward", "conv_backward")
        if imagenet
        else ("conv_bn_backward",)
    )
    want = {
        "conv_stats": convolutions,
        "bn_apply": blocks + (not imagenet),
        "bn_backward_reduce": blocks + (not imagenet),
        "chain_backward": convolutions - 1,
    } | dict.fromkeys(stem, 1)
    assert backends.counts() == Counter({f"{op}:native": n for op, n in want.items() if n})
    unwanted = ("batch_norm", "relu", "threshold", "convolution", "conv2d", "max_pool")
    fallbacks = [
        key for key in seen.names if key.startswith("aten.") and any(u in key for u in unwanted)
    ]
    assert fallbacks == []
    assert model.bn1.num_batches_tracked == 1


def test_evaluation_launches_no_statistics():
    model = fastres.resnet20(fused=True).eval()
    with torch.no_grad():
        model(torch.randn(2, 3, 16, 16))
    assert backends.counts() == Counter({"conv_stats:native": 19, "bn_apply:native": 10})


def test_counts_are_a_copy():
    bn_act(y(), BN)
    backends.counts().clear()
    assert sum(backends.counts().values()) == 2
    backends.reset_counts()
    assert not backends.counts()


def taken_by(monkeypatch, call) -> type:
    """The type in which an operator gets a tuple: torch's dispatcher makes a list of it."""
    taken = []

    def max_pool(x, kernel_size, *_):
        taken.append(type(kernel_size))
        return x.clone(), x.to(torch.uint8)

    monkeypatch.setattr(backends.reference, "max_pool", max_pool)
    backends.reset_counts()
    with fastres.backend("reference"):
        call()
    assert backends.counts() == Counter({"max_pool:reference": 1})
    return taken[0]


def test_a_step_launches_past_the_dispatcher(monkeypatch):
    def call():
        fastres.functional.max_pool2d(y(), 1)

    assert taken_by(monkeypatch, call) is tuple
    with torch.autocast("cpu", torch.bfloat16):
        assert taken_by(monkeypatch, call) is tuple
    with torch.inference_mode():
        assert taken_by(monkeypatch, call) is tuple


class Functions(TorchFunctionMode):
    """Collects what is called, operators among it."""

    def __init__(self) -> None:
        super().__init__()
        self.called = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.called.add(function)
        return function(*args, **(kwargs or {}))


def test_a_dispatch_mode_sees_the_operators(monkeypatch):
    with Seen() as seen:
        assert taken_by(monkeypatch, lambda: fastres.functional.max_pool2d(y(), 1)) is list
    assert seen.names["fastres.max_pool"] == 1


def test_a_function_mode_sees_the_operators():
    with Functions() as functions:
        backends.launch.bn_stats(y())
    assert torch.ops.fastres.bn_stats.default in functions.called


def test_the_profiler_sees_the_operators():
    with torch.autograd.profiler.profile() as profile:
        bn_act(y(), BN)
    names = Counter(event.name for event in profile.function_events)
    assert names["fastres::bn_stats"] == names["fastres::bn_apply"] == 1


class Wrapped(torch.Tensor):
    """A tensor of its own kind, which only PyTorch's dispatcher can tell what to do."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)

    def __init__(self, inner) -> None:
        self.inner = inner

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        cls.function = function
        unwrapped = (arg.inner if isinstance(arg, cls) else arg for arg in args)
        return function(*unwrapped, **(kwargs or {}))

    __torch_function__ = torch._C._disabled_torch_function_impl


@pytest.mark.parametrize("position", [0, 1])
def test_a_subclass_sees_the_operators(position):
    arguments = [torch.rand(2, 3, 4, 4), *torch.rand(2, 3), *[None] * 7, 1, True]
    want = backends.launch.bn_apply(*arguments)
    arguments[position] = Wrapped(arguments[position])
    assert torch.equal(backends.launch.bn_apply(*arguments), want)
    assert Wrapped.function is torch.ops.fastres.bn_apply.default


def test_nothing_runs_on_tensors_without_values():
    backends.reset_counts()
    assert bn_act(y().to("meta"), BN).is_meta
    with FakeTensorMode():
        assert bn_act(torch.empty(2, 3, 4, 4), BN).shape == (2, 3, 4, 4)
    assert not backends.counts()
