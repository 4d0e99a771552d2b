"""Who runs a launch operator: the only place that looks at device and dtype.

On a CPU the C++ kernels (`native`), on a GPU the Triton kernels (`triton`), anywhere plain
PyTorch (`reference`). `FASTRES_BACKEND` or `with fastres.backend(name)` force a choice.
"""

from __future__ import annotations

import importlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._ops import OpOverload

from .._checks import uncast
from .flops import register_when_counting
from .ops import FAKES, SCHEMAS

NAMES = ("native", "triton", "reference")


class _Choice(NamedTuple):
    """Who runs the operators of tensors on a type of device."""

    module: ModuleType
    name: str
    device: str


_forced: ContextVar[str | None] = ContextVar("fastres_backend", default=None)
_launches: Counter[tuple[str, str]] = Counter()
# by all that it depends on
_choices: dict[tuple, _Choice] = {}
# what is below os.environ, whose own look-up of a variable that is not set costs an exception
_environment, _VARIABLE = os.environ._data, os.environ.encodekey("FASTRES_BACKEND")


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{name}")


def _checked(name: str, source: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{source} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


def forced() -> str | None:
    """The backend that is forced here, by `fastres.backend` or by FASTRES_BACKEND, or None."""
    inside = _forced.get()
    if inside is not None:
        return inside
    outside = os.environ.get("FASTRES_BACKEND")
    return _checked(outside, "FASTRES_BACKEND") if outside else None


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Force the backend of every fused operator inside the `with`, on this thread.

    Args:
        name: "native", "triton" or "reference".

    Raises:
        ValueError: `name` is none of these.
        RuntimeError: the backend cannot run here at all; also raised by an operator inside
            whose tensors (their device or dtype) this backend does not serve.
    """
    _checked(name, "name")
    reason = available()[name]
    if reason is not None:
        raise RuntimeError(f"backend {name!r} cannot run here: {reason}")
    with holding(name):
        yield


@contextmanager
def holding(name: str) -> Iterator[None]:
    """`backend` for a name that was in force before: on autograd's own thread, for example."""
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def available() -> dict[str, str | None]:
    """For each backend None if it can run on this machine, else the reason why it cannot."""
    cpu = _module("native").usable(torch.device("cpu"), torch.float32)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "native": cpu,
        "triton": _module("triton").usable(where, torch.float32),
        "reference": None,
    }


def _choose(anchor: Tensor) -> _Choice:
    key = (_forced.get(), _environment.get(_VARIABLE), anchor.device, anchor.dtype)
    choice = _choices.get(key)
    if choice is None:
        module = _decide(forced(), anchor.device, anchor.dtype)
        choice = _choices[key] = _Choice(module, _name_of(module), anchor.device.type)
    return choice


def _decide(name: str | None, device: torch.device, dtype: torch.dtype) -> ModuleType:
    if name is not None:
        module = _module(name)
        reason = module.usable(device, dtype)
        if reason is not None:
            raise RuntimeError(f"backend {name!r} is forced but cannot run: {reason}")
        return module
    preferred = {"cpu": "native", "cuda": "triton"}.get(device.type, "reference")
    module = _module(preferred)
    return module if module.usable(device, dtype) is None else _module("reference")


def chosen(device: torch.device | str, dtype: torch.dtype) -> str:
    """Name of the backend that serves tensors of this device and dtype."""
    return _name_of(_decide(forced(), torch.device(device), dtype))


def _name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def rows_per_channel(device: torch.device, dtype: torch.dtype) -> int:
    """From how many rows for every output channel the moment form pays.

    What it computes from moments and weights alone does not grow with the batch. On two CPU cores,
    ResNet-50 at batch 16, layer3 (3 rows; layer2 has 24) in moment form makes a step 1% longer in
    fp32, where blocks then keep 0.48 of eager's bytes and not 0.56, and 2% in bf16, whose products
    are faster. On a GPU it is not measured yet.
    """
    if device.type != "cpu":
        return 4
    return 3 if dtype == torch.float32 else 16


def counts() -> Counter[str]:
    """Launches since the last `reset_counts`, by "operator:backend"."""
    return Counter({":".join(key): times for key, times in _launches.items()})


def reset_counts() -> None:
    """Forget the launches counted so far."""
    _launches.clear()


def _dispatcher(operator: str) -> Callable:
    def dispatch(anchor: Tensor, *args):
        module, name, device = _choose(anchor)
        _launches[operator, name] += 1
        with uncast(device):
            return getattr(module, operator)(anchor, *args)

    return dispatch


# types of the arguments where every tensor is torch's own
_PLAIN = frozenset({Tensor, nn.Parameter, type(None), int, float, bool, tuple, list})


def _watched(arguments: tuple) -> bool:
    """Whether anybody acts on the operators that run: a compiler or tracer, a dispatch or function
    mode, a transform of torch.func, the profiler, a meta tensor or a subclass of Tensor."""
    return (
        # first, since Dynamo knows the answer and looks no further
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
        or arguments[0].is_meta
        or not _PLAIN.issuperset(map(type, arguments))
    )


def _launcher(operator: OpOverload, dispatch: Callable) -> Callable:
    """The operator, or what it dispatches to where nobody can tell.

    Between two kernels of a step other cores wait, and torch's dispatcher unpacks and packs each
    of up to 26 arguments.
    """

    def launch(*arguments):
        return (operator if _watched(arguments) else dispatch)(*arguments)

    return launch


_library = torch.library.Library("fastres", "DEF")
launch = SimpleNamespace()
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))
    _dispatch = _dispatcher(_name)
    _library.impl(_name, _dispatch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastres::{_name}", FAKES[_name], lib=_library)
    setattr(launch, _name, _launcher(getattr(torch.ops.fastres, _name).default, _dispatch))

register_when_counting()
