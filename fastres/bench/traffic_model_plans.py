"""The ways to run a training step that are compared, each recorded from the step itself.

The step (forward, loss, backward, SGD) runs on fake tensors: they have sizes, strides and dtypes
and no memory, so any network and batch can be planned on any machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .. import functional
from ..backends import rows_per_channel
from ..functional import blocks as whole_blocks
from ..layers import BasicBlock, Bottleneck
from .operator_calls import with_channels_last
from .traffic_model import BACKWARD, OPTIMIZER, Plan
from .traffic_model_recorder import Recorder
from .workload import LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, Batch, Step, Workload

Prepare = Callable[[nn.Module], None]


@dataclass(frozen=True)
class Variant:
    """How a plan differs from the network as it is made with `fused=True`.

    Attributes:
        name, explanation: as tables show them.
        fused: False is the network in plain PyTorch.
        layer_by_layer: one fused operator a layer instead of whole blocks.
        moments: False keeps the output of every convolution in memory.
        back_to_back: False computes the next block's first convolution by itself.
        providers: provider of an operator by the beginning of its name, instead of the tables'. A
            Triton kernel asked for here forms dy as it loads, where the tables would store it.
    """

    name: str
    explanation: str
    fused: bool = True
    layer_by_layer: bool = False
    moments: bool = True
    back_to_back: bool = True
    providers: dict[str, str] = field(default_factory=dict)


VARIANTS = (
    Variant("eager", "PyTorch, channels_last, every operator by itself", fused=False),
    Variant(
        "pointwise",
        "cuDNN convolutions; statistics, normalisation, ReLU and shortcut fused between them, as "
        "torch.compile does",
        layer_by_layer=True,
        providers={"conv": "cudnn"},
    ),
    Variant(
        "prologue/epilogue",
        "normalisation and ReLU in the prologue, statistics in the epilogue of every convolution, "
        "whose output is kept, as cuDNN's fused engines do",
        moments=False,
        providers={"conv1x1_backward": "cudnn", "conv": "triton"},
    ),
    Variant(
        "moment",
        "fastres, providers as the tables have them: the expanding convolution's output is never "
        "in memory",
        back_to_back=False,
    ),
    Variant(
        "back-to-back",
        "the same, the next block's first convolution computed on the tile just produced: what "
        "runs by default",
    ),
    Variant(
        "moment-triton",
        "moment with the Triton kernel wherever there is one, and nothing stored that a kernel can "
        "form as it loads: the fewest bytes, whatever the tables prefer for the time",
        back_to_back=False,
        providers={"": "triton"},
    ),
    Variant(
        "back-to-back-triton",
        "back-to-back with the same kernels as moment-triton",
        providers={"": "triton"},
    ),
)
NAMES = tuple(variant.name for variant in VARIANTS)


@dataclass(frozen=True)
class Recorded:
    """A plan, and what its forward keeps for the backward by block, in bytes."""

    plan: Plan
    blocks: tuple[str, ...]
    saved: dict[str, int]


@dataclass(frozen=True)
class Unit:
    """The activation in which blocks are measured: the narrow one of a block without projection.

    nbytes: of that activation; block: the name of the first such block.
    """

    block: str
    nbytes: int


def record(
    workload: Workload, variant: Variant, gpu: str | None = None, family: str = "sm_90"
) -> Recorded:
    """Run one step of `workload` in this variant on fake tensors, and record it.

    Args:
        gpu, family: for which the tuned tables choose, as in `Machine`.

    Raises:
        ImportError: Triton is not installed.
    """
    from ..kernels import tuned

    with FakeTensorMode(), tuned.choosing_for(gpu, family), ExitStack() as stack:
        stack.enter_context(_providers(variant.providers))
        # the tensors are on no GPU, and the plan is for one
        there = torch.device("cuda"), workload.autocast or torch.float32
        rows = rows_per_channel(*there) if variant.moments else math.inf
        stack.enter_context(moments_from(rows))
        module = with_channels_last(workload.build(variant.fused)).train()
        if variant.layer_by_layer:
            _layer_by_layer(module)
        recorder = Recorder(module, back_to_back=variant.back_to_back)
        _step(workload, module, recorder)
    plan = Plan(variant.name, variant.explanation, tuple(recorder.operations))
    return Recorded(plan, tuple(recorder.blocks), recorder.saved)


def unit(workload: Workload) -> Unit | None:
    """The unit of a network, None where every block has a projection."""
    found: list[Unit] = []

    def look(name: str) -> Callable:
        def hook(block: nn.Module, _inputs, out: Tensor) -> None:
            found.append(Unit(name, out.nbytes // block.expansion))

        return hook

    with FakeTensorMode(), torch.no_grad():
        module = with_channels_last(workload.build(False))
        for name, block in _blocks(module).items():
            if block.downsample is None:
                block.register_forward_hook(look(name))
        step = Step(workload, module, [_batch(workload)])
        step.forward_pass(step.batches[0])
    return found[0] if found else None


def _blocks(module: nn.Module) -> dict[str, nn.Module]:
    kinds = (BasicBlock, Bottleneck)
    return {name: child for name, child in module.named_modules() if isinstance(child, kinds)}


class _MaxPool(nn.MaxPool2d):
    """The fused max pooling as a module of its own, which no stem takes into itself."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, self.kernel_size, self.stride, self.padding)


def _layer_by_layer(module: nn.Module) -> None:
    for block in _blocks(module).values():
        block.forward = block.layer_by_layer
    for child in module.modules():
        if type(child) is nn.MaxPool2d:
            child.__class__ = _MaxPool


def _step(workload: Workload, module: nn.Module, recorder: Recorder) -> None:
    batch = _batch(workload)
    optimizer = torch.optim.SGD(
        module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        fused=True,
    )  # fmt: skip
    step = Step(workload, module, [batch])
    with recorder:
        with torch.autograd.graph.saved_tensors_hooks(recorder.keep, lambda tensor: tensor):
            out = step.forward_pass(batch)
        with recorder.phase(BACKWARD):
            out.backward()
        with recorder.phase(OPTIMIZER):
            optimizer.step()


def _batch(workload: Workload) -> Batch:
    images = tuple(
        torch.empty(shape).contiguous(memory_format=torch.channels_last)
        for shape in workload.shapes
    )
    return Batch(images, torch.zeros(workload.batch, dtype=torch.int64))


@contextmanager
def moments_from(rows: float) -> Iterator[None]:
    """Let the moment form be worth its while from so many rows per channel."""
    before = whole_blocks.rows_per_channel
    whole_blocks.rows_per_channel = lambda *_: rows
    try:
        yield
    finally:
        whole_blocks.rows_per_channel = before


@contextmanager
def _providers(wanted: dict[str, str]) -> Iterator[None]:
    """Let the first entry whose name an operator's name begins with say who provides it."""
    from ..kernels import tuned

    def watch(key: tuned.Key, choice: tuned.Choice) -> tuned.Choice:
        for beginning, provider in wanted.items():
            if key.operator.startswith(beginning):
                config = {name: value for name, value in choice.config.items() if name != "stored"}
                return tuned.Choice(provider, config)
        return choice

    with tuned.watching(watch):
        yield
